"""What a launched process is: its cgroup, limits, user, capabilities, filter, directory, output."""

import asyncio
import base64
import os
import secrets
import signal
import struct

import pytest

from polypod.plan import operations as op
from polypod.plan.operations import Plan
from polypod.plugin.errors import BackendError

pytestmark = pytest.mark.needs_root

NEWNS = 0x20000
ALLOW, KILL = 0x7FFF0000, 0x80000000
SYS_EXECVE = {"x86_64": 59, "aarch64": 221}[os.uname().machine]


def shell(script):
    return op.Execute(args=["sh", "-c", script], env=["PATH=/bin:/usr/bin"], search=True)


async def said(host, steps, script, fds=(), flags=0):
    """Run a script after some steps; returns (status, what it wrote)."""
    captured = host.logs.capture(limit_bytes=1 << 20)
    last = len(fds)
    streams = op.UseStdio(stdin="", stdout=f"fd:{last}", stderr=f"fd:{last + 1}", uid=-1)
    plan = Plan(flags, [streams, *steps, shell(script)])
    given = [*fds, captured.stdio.stdout, captured.stdio.stderr]
    try:
        made = await host.supervisor.launch("p", plan, fds=given)
        os.close(made.pidfd)
        captured.started()
        status = await host.supervisor.wait("p")
        await host.supervisor.forget("p")
        stdout, stderr = await captured.collect()
        return status, (stdout + stderr).decode()
    finally:
        captured.close()


@pytest.fixture
async def host(place):
    return await place.open()


@pytest.fixture
def cgroup():
    """A cgroup of the pids hierarchy."""
    path = f"/sys/fs/cgroup/pids/polypod-test-{secrets.token_hex(4)}"
    os.mkdir(path)
    yield path
    os.rmdir(path)


@pytest.mark.needs_cgroup1
async def test_joins_a_cgroup_through_tasks_and_unshares_behind_it(host, cgroup):
    tasks = os.open(f"{cgroup}/tasks", os.O_WRONLY | os.O_CLOEXEC)
    steps = [op.JoinCgroups(sources=["fd:0"])]
    _, text = await said(host, steps, "grep :pids: /proc/self/cgroup", [tasks])
    assert text.strip().endswith(":pids:/" + os.path.basename(cgroup))
    steps.append(op.Unshare(kinds=["cgroup"]))
    _, text = await said(host, steps, "grep :pids: /proc/self/cgroup", [tasks])
    assert text.strip().endswith(":pids:/")
    os.close(tasks)


async def test_limits_beyond_our_own_become_ours_where_that_is_allowed(host):
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limits = [[resource.RLIMIT_NOFILE, 1 << 20, 1 << 20], [resource.RLIMIT_CORE, 0, 0]]
    steps = [op.SetLimits(limits=limits, best_effort=True)]
    _, text = await said(host, steps, "ulimit -Hn; ulimit -c")
    most, core = text.split()
    assert int(most) in (hard, 1 << 20)
    assert core == "0"


async def test_oom_score_is_set_and_one_that_is_not_allowed_is_left(host):
    _, text = await said(
        host, [op.SetOomScore(value=500, best_effort=False)], "cat /proc/self/oom_score_adj"
    )
    assert text.strip() == "500"
    status, text = await said(
        host, [op.SetOomScore(value=-999, best_effort=True)], "cat /proc/self/oom_score_adj"
    )
    assert status.code == 0
    with open("/proc/self/oom_score_adj") as own:
        assert int(text) in (-999, int(own.read()))


@pytest.mark.parametrize("uid", [0, 1000])
async def test_e7_sets_are_those_that_were_granted(host, uid):
    net_bind = 1 << 10
    steps = [
        op.SetUser(uid=uid, gid=uid, groups=[7], umask=0o27),
        op.SetCapabilities(
            bounding=net_bind, effective=net_bind, permitted=net_bind, inheritable=0, ambient=0
        ),
        op.SetNoNewPrivileges(),
    ]
    script = "grep -E '^(Cap|NoNew|Groups|Umask|Uid)' /proc/self/status"
    _, text = await said(host, steps, script)
    found = dict(line.split(":\t") for line in text.splitlines())
    assert found["Uid"].split() == [str(uid)] * 4
    assert found["Groups"].split() == ["7"]
    assert found["Umask"] == "0027"
    assert found["NoNewPrivs"] == "1"
    assert int(found["CapBnd"], 16) == net_bind
    assert int(found["CapInh"], 16) == int(found["CapAmb"], 16) == 0
    # A program without file capabilities keeps them over execve as root alone.
    assert int(found["CapEff"], 16) == (net_bind if uid == 0 else 0)


def bpf(*instructions):
    """(code, jump if true, jump if false, value) … as a plan carries them."""
    program = b"".join(struct.pack("=HBBI", *each) for each in instructions)
    return op.LoadSeccomp(program=base64.b64encode(program).decode(), flags=0)


async def test_e24_nothing_but_execve_is_asked_of_the_kernel_behind_the_filter(host):
    """A filter that lets execve alone live: the launch succeeds, and the program dies of its first call."""
    only_execve = bpf((0x20, 0, 0, 0), (0x15, 0, 1, SYS_EXECVE), (6, 0, 0, ALLOW), (6, 0, 0, KILL))
    program = op.Execute(args=["true"], env=["PATH=/none:/nowhere:/bin"], search=True)
    made = await host.supervisor.launch(
        "p", Plan(0, [op.SetNoNewPrivileges(), only_execve, program]), fds=[]
    )
    os.close(made.pidfd)
    status = await host.supervisor.wait("p")
    assert (status.code, status.signal) == (128 + signal.SIGSYS, signal.SIGSYS)


async def test_filter_is_loaded_without_no_new_privileges_and_without_capabilities(host):
    """Our CAP_SYS_ADMIN lasts until the filter is there, and is gone behind execve."""
    nothing = op.SetCapabilities(bounding=0, effective=0, permitted=0, inheritable=0, ambient=0)
    steps = [op.SetUser(uid=1000, gid=1000, groups=[], umask=0o22), nothing, bpf((6, 0, 0, ALLOW))]
    _, text = await said(host, steps, "grep -E '^(CapEff|CapPrm|NoNew|Seccomp:)' /proc/self/status")
    found = dict(line.split(":\t") for line in text.splitlines())
    assert int(found["CapEff"], 16) == int(found["CapPrm"], 16) == 0
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("0", "2")


async def test_bad_filter_fails_the_launch(host):
    with pytest.raises(BackendError, match="load the seccomp filter"):
        await host.supervisor.launch("p", Plan(0, [bpf((0xFFFF, 0, 0, 0)), shell("true")]), fds=[])


@pytest.mark.parametrize("number", [3, 4, 5, 6, 7, 8, 9, 10, 15, 20])
async def test_e2_no_directory_is_reached_through_what_the_launcher_has_open(host, number):
    directories = [os.open("/", os.O_RDONLY | os.O_DIRECTORY) for _ in range(30)]
    path = f"/proc/self/fd/{number}"
    steps = [op.CloseDescriptors(), op.ChangeDirectory(path=path), shell("pwd")]
    with pytest.raises(BackendError, match=path):
        await host.supervisor.launch("p", Plan(NEWNS, steps), fds=directories)
    for fd in directories:
        os.close(fd)


async def test_a1_output_beyond_the_limit_is_cut_and_marked_and_blocks_nobody(host):
    captured = host.logs.capture(limit_bytes=100_000)
    plan = Plan(
        0,
        [
            op.UseStdio(stdin="", stdout="fd:0", stderr="fd:1", uid=-1),
            shell("yes | head -c 50000000; echo end >&2"),
        ],
    )
    made = await host.supervisor.launch(
        "p", plan, fds=[captured.stdio.stdout, captured.stdio.stderr]
    )
    os.close(made.pidfd)
    captured.started()
    assert (await host.supervisor.wait("p")).code == 0
    stdout, stderr = await captured.collect()
    captured.close()
    assert len(stdout) == 100_000
    assert stdout.endswith(b"cut off here]\n")
    assert stderr == b"end\n"


async def test_a2_a_background_child_that_keeps_the_pipe_holds_up_nobody(host):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        _, text = await said(host, [], "sleep 5 & echo done")
        assert text == "done\n"
    assert len(os.listdir("/proc/self/fd")) == before
    # The orphans are the keeper's, who reaps them.
    keeper = (await host.pids())["keeper"]
    for pid in children(keeper):
        if comm(pid) == "sleep":
            os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        while any(comm(pid) == "sleep" for pid in children(keeper)):
            await asyncio.sleep(0.02)


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def comm(pid):
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return ""
