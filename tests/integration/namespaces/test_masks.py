"""E4: masks, read-only paths, ``/dev/null`` and the console are bound by descriptor, never by name."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest
from support.containment_parts import MASKED, READ_ONLY, security
from support.racing import Racer

from polypod.plugin.errors import FailedPrecondition, NotFound, PolypodError
from polypod.plugin.requests import Mount

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay, pytest.mark.needs_busybox]

_FILES = "/proc/keys /proc/interrupts /proc/timer_list"
_LOOK = "for path in {}; do echo $path $(stat -c '%F %t:%T' $path 2>&1); done"


@pytest.fixture
def layer(tmp_path) -> Path:
    place = tmp_path / "layer"
    place.mkdir()
    return place


def seen(result) -> dict[str, str]:
    """Path → what stat says of it."""
    return dict(line.split(" ", 1) for line in result.lines)


async def test_e4_masked_paths_hide_everything(pod):
    found = seen(await pod.run(_LOOK.format(" ".join(MASKED))))
    for path in filter(os.path.exists, MASKED):
        wanted = "directory" if os.path.isdir(path) else "character special file 1:3"
        assert found[path].startswith(wanted), path
    inside = await pod.run(f"ls -A /sys/firmware; cat {_FILES} | wc -c")
    assert inside.lines == ["0"]


async def test_e4_masks_cannot_be_written_or_taken_away(pod):
    script = """
        for path in /proc/interrupts /proc/keys /sys/firmware; do
            umount $path 2>/dev/null && echo umounted $path
            mount -o remount,rw $path 2>/dev/null && echo remounted $path
            chmod 777 $path 2>/dev/null && echo changed $path
        done
        touch /sys/firmware/new 2>/dev/null && echo made
        echo text > /proc/keys && echo swallowed
    """
    everything = security(seccomp=None)
    assert (await pod.run(script, security=everything)).lines == ["swallowed"]
    assert os.stat("/dev/null").st_mode & 0o777 == 0o666


async def test_e4_read_only_paths(pod):
    script = """
        echo h > /proc/sysrq-trigger || echo refused sysrq
        echo x > /proc/sys/kernel/hostname || echo refused hostname
        echo /x > /proc/sys/kernel/core_pattern || echo refused core_pattern
        echo 0 > /proc/irq/default_smp_affinity || echo refused irq
    """
    result = await pod.run(f"({script}) 2>/dev/null")
    assert result.lines == [f"refused {x}" for x in ("sysrq", "hostname", "core_pattern", "irq")]
    result = await pod.run("grep -E ' /proc/(sys|bus|fs|irq|sysrq)' /proc/self/mountinfo")
    points = {line.split()[4]: line.split()[5] for line in result.lines}
    assert points.keys() == {path for path in READ_ONLY if os.path.exists(path)}
    for options in points.values():
        # What the procfs had stays: only read-only is added.
        assert {"ro", "nosuid", "nodev", "noexec"} <= set(options.split(","))


async def test_e4_read_only_paths_hold_for_what_is_mounted_below(pod, tmp_path):
    for name in ("outer", "inner"):
        (tmp_path / name).mkdir()
    result = await pod.run(
        "touch /data/x /data/inner/x; echo end",
        mounts=(Mount("/data", str(tmp_path / "outer")), Mount("/data/inner", str(tmp_path / "inner"))),
        security=security(readonly_paths=("/data",)),
    )  # fmt: skip
    assert result.err.count("Read-only file system") == 2
    assert not os.listdir(tmp_path / "inner")


async def test_e4_masks_on_links_of_the_image(pod, layer, decoy):
    """A link to a host path means that path inside the container, or nothing."""
    (layer / "secret").symlink_to(decoy.path / "file")
    (layer / "folder").symlink_to("../" * 20 + str(decoy.path / "dir").lstrip("/"))
    (layer / "inner").symlink_to("/etc/passwd")
    (layer / "magic").symlink_to("/proc/self/fd/1")
    masked = ("/secret", "/folder", "/inner", "/missing", "/etc/passwd/x")
    result = await pod.run(
        "wc -c < /etc/passwd; echo x > /inner",
        layers=[layer],
        security=security(masked_paths=masked, readonly_paths=("/secret", "/folder")),
    )
    assert result.lines == ["0"]
    assert decoy.unchanged()
    result = await pod.run("echo ran", layers=[layer], security=security(masked_paths=("/magic",)))
    assert result.error
    assert decoy.unchanged()


async def test_e4_masked_file_of_a_volume(pod, tmp_path):
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/secret").write_text("secret\n")
    result = await pod.run(
        "cat /v/secret; echo over > /v/secret; rm /v/secret",
        mounts=(Mount("/v", str(tmp_path / "volume")),),
        security=security(masked_paths=("/v/secret",)),
    )
    assert result.out == ""
    assert "busy" in result.err
    assert (tmp_path / "volume/secret").read_text() == "secret\n"


async def test_e4_null_swapped_for_a_link_while_containers_start(pod, decoy, tmp_path):
    """All containers share a volume as ``/dev``; somebody swaps null for a link to what they want."""
    dev = tmp_path / "dev"
    dev.mkdir()
    for name in ("pts", "shm", "mqueue"):
        (dev / name).mkdir()
    os.mknod(dev / "null", 0o020666, os.makedev(1, 3))
    (dev / "other").symlink_to("/proc/sysrq-trigger")
    look = _LOOK.format(_FILES) + "; grep -c /proc/keys /proc/self/mountinfo"
    with Racer(dev, "null", "other") as racer:
        for _ in range(40):
            result = await pod.run(look, mounts=(Mount("/dev", str(dev)),))
            assert result.out.count("character special file 1:3") == 3, result
            assert result.lines[-1] == "1"
        await racer.swapped_often()
    assert decoy.unchanged()


async def test_e4_null_swapped_for_a_link_while_execs_run(pod, decoy):
    """What init does to its own /dev/null changes neither its masks nor where an exec's stdin leads."""
    box = await pod.start(
        f"""
        cp -a /dev/null /dev/real; echo ready
        while :; do
            ln -s /proc/sysrq-trigger /dev/link; mv -T /dev/link /dev/null
            ln -s {decoy.path}/file /dev/link; mv -T /dev/link /dev/null
            cp -a /dev/real /dev/node; mv -T /dev/node /dev/null
        done
        """
    )
    await box.says("ready")
    look = _LOOK.format(_FILES) + "; stat -L -c '%t:%T' /proc/self/fd/0; cat"
    for _ in range(40):
        result = await box.exec(look)
        assert result.out.count("character special file 1:3") == 3
        assert result.lines[-1] == "1:3", result
    assert decoy.unchanged()
    assert (await box.exec("echo h > /proc/sysrq-trigger")).code == 1


async def test_e4_null_device_is_not_shared_with_the_container(pod):
    """Masks are copies of a node that is not in any container: removing the own one opens nothing."""
    box = await pod.start("rm /dev/null; echo text > /dev/null; echo ready; exec sleep 100")
    await box.says("ready")
    assert (await box.exec("cat /dev/null; cat /proc/keys")).out == "text\n"


async def test_e4_null_of_the_streams_cannot_be_changed(pod):
    """A container without a stdin gets ours, the one of all: its mode is nobody's to change."""
    script = "chmod 0 /proc/self/fd/0; chown 7 /proc/self/fd/0; touch /proc/self/fd/0; echo end"
    box = await pod.start(f"{script}; exec sleep 100")
    await box.says("end")
    for result in (await box.exec(script), await pod.run("true")):
        assert result.code == 0
    look = "stat -L -c '%a %u %t:%T' /proc/self/fd/0; : < /dev/stdin && echo opened"
    result = await pod.run(look, security=security(run_as_user=1000))
    assert result.lines == ["666 0 1:3", "opened"]


# The console


async def test_e4_console_is_the_terminal(pod):
    box = await pod.start(
        "stat -c '%t:%T' /dev/console /dev/pts/0; tty; cat /proc/self/mountinfo | grep -c dev/console",
        tty=True,
    )
    master = box.terminal()
    assert (await box.ended()).code == 0
    first, second, name, mounts = _read_all(master).split()
    assert first == second
    assert first.startswith(b"88:")
    assert (name, mounts) == (b"/dev/pts/0", b"1")


def _read_all(master: int) -> bytes:
    seen = b""
    while True:
        try:
            data = os.read(master, 4096)
        except OSError:
            return seen
        if not data:
            return seen
        seen += data


async def test_e4_console_link_of_a_volume(pod, decoy, tmp_path):
    dev = tmp_path / "dev"
    (dev / "pts").mkdir(parents=True)
    (dev / "console").symlink_to(decoy.path / "file")
    box = await pod.start(
        "echo text > /dev/console; tty", tty=True, mounts=(Mount("/dev", str(dev)),)
    )
    master = box.terminal()
    await box.ended()
    assert decoy.unchanged()
    assert b"/dev/" in _read_all(master)


@pytest.mark.parametrize("kind", ["link", "fifo", "null", "file", "missing"])
async def test_e4_terminal_multiplexer_is_looked_at_before_it_is_opened(pod, decoy, tmp_path, kind):
    pts = tmp_path / "pts"
    pts.mkdir()
    match kind:
        case "link":
            (pts / "ptmx").symlink_to(decoy.path / "file")
        case "fifo":
            os.mkfifo(pts / "ptmx")
        case "null":
            os.mknod(pts / "ptmx", 0o020666, os.makedev(1, 3))
        case "file":
            (pts / "ptmx").write_text("")
    async with asyncio.timeout(10):
        result = await pod.run("tty", tty=True, mounts=(Mount("/dev/pts", str(pts)),))
    # It was not even opened: opening alone may do something.
    wanted = "No such file" if kind == "missing" else "is not the terminal multiplexer"
    assert wanted in result.error
    assert decoy.unchanged()


async def test_e4_console_swapped_while_containers_start(pod, decoy, tmp_path):
    dev = tmp_path / "dev"
    (dev / "pts").mkdir(parents=True)
    (dev / "console").touch()
    (dev / "other").symlink_to(decoy.path / "file")
    with Racer(dev, "console", "other") as racer:
        for _ in range(25):
            result = await pod.run(
                "echo text > /dev/console", tty=True, mounts=(Mount("/dev", str(dev)),)
            )
            assert not result.error or "open a terminal" in result.error
        await racer.swapped_often()
    assert decoy.unchanged()


async def test_e4_terminal_of_an_exec_is_the_containers(pod):
    box = await pod.start("echo ready; exec sleep 100")
    await box.says("ready")
    session, master = await box.terminal_session("tty; read line; stty size; ls /dev/console")
    seen = b""
    while b"pts/0" not in seen:
        seen += os.read(master, 4096)
    await session.resize(width=80, height=24)
    os.write(master, b"go\n")
    assert (await session.wait()).code == 1
    seen += _read_all(master)
    assert seen.startswith(b"/dev/pts/0")
    assert b"24 80" in seen
    # The console is the first process's alone.
    assert b"No such file" in seen


@pytest.mark.parametrize("fake", ["ln -s /etc/passwd", "mkfifo", "touch", "cp -a /dev/null"])
async def test_e4_exec_looks_at_the_multiplexer(pod, fake):
    """A privileged container has put something else on /dev/pts."""
    box = await pod.start(
        f"mount -t tmpfs none /dev/pts; {fake} /dev/pts/ptmx; echo ready; exec sleep 100",
        security=security(privileged=True),
    )
    await box.says("ready")
    with pytest.raises(PolypodError, match="terminal"):
        async with asyncio.timeout(10):
            await box.terminal_session("tty")


async def test_e4_resize_opens_nothing_but_terminals(pod):
    box = await pod.start("echo ready; exec sleep 100")
    await box.says("ready")
    # What its stdin became hangs whoever opens it.
    session, output = await box.session(
        "mkfifo /tmp/f; exec 0<> /tmp/f; echo there; exec sleep 100"
    )
    while b"there" not in (await output.collect())[0]:
        await asyncio.sleep(0.01)
    with pytest.raises(FailedPrecondition, match="no terminal"):
        await session.resize(width=1, height=1)
    await session.kill(9)
    output.close()
    with pytest.raises(NotFound):
        await session.resize(width=1, height=1)


async def test_masks_are_the_requests_own(pod):
    """An unmasked container sees what others do not (procMount: Unmasked)."""
    open_ = security(masked_paths=(), readonly_paths=())
    look = "head -c 1 /proc/keys | wc -c; grep -c ' /proc/sys ' /proc/self/mountinfo"
    result = await pod.run(look, security=open_)
    assert result.lines == ["1", "0"]
    adjusted = await pod.run(
        "stat -c %F /etc/passwd",
        adjust=lambda config: replace(
            config, linux=replace(config.linux, masked_paths=("/etc/passwd",))
        ),
    )
    assert adjusted.lines == ["character special file"]
