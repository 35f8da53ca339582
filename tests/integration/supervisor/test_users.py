"""User namespaces: who owns what, whose ids are whose, and what is left of a failure."""

import asyncio
import fcntl
import os
from pathlib import Path

import pytest

from polypod.plan import operations as op
from polypod.plan.operations import Plan
from polypod.plugin.errors import BackendError
from polypod.plugin.oci import OciIdMapping
from polypod.plugin.services import IdMaps
from tests.integration.kill.daemon import FullPipe

pytestmark = [pytest.mark.needs_root]

MAPS = IdMaps((OciIdMapping(0, 300_000, 65_536),), (OciIdMapping(0, 400_000, 65_536),))
KINDS = frozenset({"network", "ipc", "uts", "pid", "user"})
_NS_GET_USERNS = 0xB701
_NEWNS = 0x20000
_NULL = op.UseStdio(stdin="", stdout="fd:0", stderr="fd:0", uid=-1)


def close(made):
    for fd in (*made.fds.values(), *([] if made.netlink is None else [made.netlink])):
        os.close(fd)


def owner(fd):
    """Return (device, inode) of the user namespace that owns another namespace."""
    user = fcntl.ioctl(fd, _NS_GET_USERNS)
    try:
        found = os.fstat(user)
        return found.st_dev, found.st_ino
    finally:
        os.close(user)


def plan(kinds, script, pids=""):
    enter = op.EnterUserNamespace(source="fd:1", kinds=kinds)
    execute = op.Execute(args=["/bin/sh", "-c", script], env=["PATH=/bin:/usr/bin"], search=True)
    return Plan(_NEWNS, [enter, _NULL, execute], pids)


async def say(host, output, what, fds, **options):
    made = await host.supervisor.launch("p", what, fds=[output.write_end, *fds], **options)
    os.close(made.pidfd)
    if options.get("hold"):
        await host.supervisor.release("p")
    status = await host.supervisor.wait("p")
    await host.supervisor.forget("p")
    return status.code, output.text(), made


async def test_all_namespaces_belong_to_the_user_namespace(host):
    sysctls = {"net.ipv4.ip_unprivileged_port_start": "7", "kernel.shm_rmid_forced": "1"}
    made = await host.supervisor.make_namespaces(
        "s", KINDS, hostname="name", sysctls=sysctls, ids=MAPS
    )
    user = os.fstat(made.fds["user"])
    for kind in KINDS - {"user"}:
        assert owner(made.fds[kind]) == (user.st_dev, user.st_ino), kind
    place = Path(f"/proc/{made.init_pid}")
    assert (place / "comm").read_text() == "polypod-init\n"
    assert (place / "uid_map").read_text().split() == ["0", "300000", "65536"]
    assert (place / "gid_map").read_text().split() == ["0", "400000", "65536"]
    await host.supervisor.drop_namespaces("s")
    close(made)


@pytest.mark.parametrize("hold", [False, True])
async def test_a_process_is_root_of_namespaces_of_its_own(host, output, hold):
    made = await host.supervisor.make_namespaces(
        "s", KINDS - {"pid"}, sysctls={"kernel.shm_rmid_forced": "1"}, ids=MAPS
    )
    script = (
        "id -u; id -g; echo $$; cat /proc/self/uid_map; mount -t proc p /proc; "
        "mount -t sysfs s /sys && echo mounted; cat /proc/1/comm"
    )
    # Without a network of its own it may not mount a sysfs.
    what = plan(["mount", "pid", "network"], script)
    code, text, launched = await say(host, output, what, [made.fds["user"]], hold=hold)
    assert code == 0, text
    words = text.split()
    assert words == ["0", "0", "1", "0", "300000", "65536", "mounted", "sh"]
    assert launched.pid > 1
    await host.supervisor.drop_namespaces("s")
    close(made)


async def test_a_process_is_born_in_the_pods_processes(host, output):
    made = await host.supervisor.make_namespaces("s", KINDS, ids=MAPS)
    fds = [made.fds["user"], made.fds["pid"]]
    script = "mount -t proc p /proc; cat /proc/1/comm; cat /proc/self/status | grep CapBnd"
    code, text, _launched = await say(host, output, plan(["mount"], script, "fd:2"), fds)
    assert code == 0, text
    assert text.split()[0] == "polypod-init"
    await host.supervisor.drop_namespaces("s")
    close(made)


async def test_a_launch_that_fails_inside_leaves_nothing(host, output):
    users = await host.supervisor.map_ids(MAPS)
    good = plan(["mount", "pid"], "true")
    bad = Plan(_NEWNS, [good.operations[0], op.ChangeDirectory(path="/none"), good.execute])
    with pytest.raises(BackendError, match="/none"):
        await host.supervisor.launch("p", bad, fds=[output.write_end, users])
    wrong = Plan(_NEWNS, [op.EnterUserNamespace(source="fd:0", kinds=["pid"]), good.execute])
    with pytest.raises(BackendError, match="enter the user namespace"):
        await host.supervisor.launch("p", wrong, fds=[output.write_end])
    assert await host.supervisor.processes() == []
    os.close(users)


@pytest.mark.parametrize("hold", [False, True])
async def test_a_launch_that_is_cancelled_before_the_birth_leaves_nothing(host, hold):
    """The first process hangs while it still has the rights of the host."""
    pipe, users = FullPipe(), await host.supervisor.map_ids(MAPS)
    steps = plan(["mount", "pid"], "sleep 1000").operations
    what = Plan(_NEWNS, [op.JoinCgroups(sources=["fd:0"]), *steps])
    task = asyncio.create_task(
        host.supervisor.launch("p", what, fds=[pipe.write_end, users], hold=hold)
    )
    while not (found := await host.supervisor.processes()):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    while await host.supervisor.processes() or Path(f"/proc/{found[0].pid}").exists():
        await asyncio.sleep(0.01)
    pipe.close()
    os.close(users)


@pytest.mark.parametrize(
    ("sysctls", "maps", "said"),
    [
        ({"net.no": "1"}, MAPS, r"sysctl net\.no=1"),
        (
            {},
            IdMaps((OciIdMapping(0, 1, 10), OciIdMapping(5, 50, 10)), MAPS.gids),
            "mapping of uids",
        ),
    ],
)
async def test_failed_namespaces_leave_nothing(host, sysctls, maps, said):
    with pytest.raises(BackendError, match=said):
        await host.supervisor.make_namespaces("s", KINDS, sysctls=sysctls, ids=maps)
    assert await host.supervisor.namespaces("s") is None
    made = await host.supervisor.make_namespaces("s", KINDS, ids=MAPS)
    await host.supervisor.drop_namespaces("s")
    close(made)
