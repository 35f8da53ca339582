"""What becomes of the program: exit codes, errors as a user reads them, the working directory (E2)."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from support.containment_parts import python, python_mounts

from polypod.plugin.requests import NamespaceMode, NamespaceOptions

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay, pytest.mark.needs_busybox]


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$; sleep 9", 143), ("kill -9 $$", 137)],
)
async def test_exit_code(pod, script, code):
    # A first process ignores signals without a handler, even its own: a child gets them.
    result = await pod.run(("/bin/sh", "-c", f"sh -c '{script}'; exit $?"))
    assert result.error == ""
    assert result.code == code


async def test_signal_from_outside_is_in_the_code(pod):
    box = await pod.start("trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done")
    await box.says("ready")
    assert (await box.kill(15)).code == 7
    box = await pod.start("echo ready; exec sleep 100")
    await box.says("ready")
    assert (await box.kill(9)).code == 137


@pytest.fixture
def programs(tmp_path):
    """A layer with things that cannot be executed."""
    place = tmp_path / "programs"
    (place / "bin").mkdir(parents=True)
    (place / "bin/plain").write_text("#!/bin/sh\n")
    (place / "bin/noise").write_bytes(b"\x7fELF\1\1\1 no program of any machine")
    (place / "bin/noise").chmod(0o755)
    (place / "bin/lost").write_text("#!/bin/no-such-interpreter\n")
    (place / "bin/lost").chmod(0o755)
    (place / "bin/directory").mkdir()
    return place


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("nosuch", "x"), 'exec: "nosuch": executable file not found in $PATH'),
        (("/bin/nosuch",), 'exec: "/bin/nosuch": no such file or directory'),
        (("/bin/plain",), 'exec: "/bin/plain": permission denied'),
        (("plain",), 'exec: "plain": permission denied'),
        (("/bin/directory",), 'exec: "/bin/directory": permission denied'),
        (("/bin/noise",), 'exec: "/bin/noise": exec format error'),
        (("/bin/lost",), 'exec: "/bin/lost": no such file or directory'),
        (("/bin/sh/x",), 'exec: "/bin/sh/x": not a directory'),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_program_that_cannot_be_executed(pod, programs, args, error):
    result = await pod.run(args, layers=[programs])
    assert result.error == error
    box = await pod.start("echo ready; exec sleep 100", layers=[programs])
    await box.says("ready")
    assert (await box.exec(args)).error == error


async def test_program_is_found_on_the_images_path(pod, tmp_path):
    place = tmp_path / "layer/opt/tools"
    place.mkdir(parents=True)
    (place / "greet").write_text("#!/bin/sh\necho hello $1\n")
    (place / "greet").chmod(0o755)
    env = (("PATH", b"/opt/tools:/bin"),)
    result = await pod.run(("greet", "you"), layers=[tmp_path / "layer"], envs=env)
    assert result.out == "hello you\n"


async def test_environment_is_the_requests_alone(pod):
    result = await pod.run(("/bin/cat", "/proc/1/environ"), envs=(("MINE", b"1"),))
    names = {each.partition("=")[0] for each in result.out.split("\0") if each}
    assert names == {"PATH", "HOSTNAME", "HOME", "MINE"}


async def test_environment_is_bytes(pod):
    value = bytes(range(1, 256)).replace(b"\n", b"")
    code = "import os; print(os.environb[b'BYTES'].hex())"
    result = await pod.run(python(code), mounts=python_mounts(), envs=(("BYTES", value),))
    assert result.out.strip() == value.hex()


async def test_working_directory_is_made_if_missing(pod):
    result = await pod.run("pwd; stat -c '%a %u' .", working_dir="/srv/app/data")
    assert result.lines == ["/srv/app/data", "755 0"]


async def test_working_directory_that_is_a_file(pod):
    result = await pod.run("pwd", working_dir="/etc/passwd")
    assert "/etc/passwd" in result.error
    assert "ot a directory" in result.error


# E2


async def test_e2_working_directory_is_no_descriptor(pod):
    for number in range(3, 21):
        result = await pod.run("pwd; ls -a ../../..", working_dir=f"/proc/self/fd/{number}")
        assert result.error, number
        assert result.out == ""


async def test_e2_working_directory_of_an_exec_is_no_descriptor(pod):
    box = await pod.start("echo ready; exec sleep 100")
    await box.says("ready")
    for number in range(3, 21):
        for where in ("", "/..", "/../.."):
            cwd = f"/proc/self/fd/{number}{where}"
            result = await box.exec("pwd", lambda process, cwd=cwd: replace(process, cwd=cwd))
            assert result.error, (cwd, result)


async def test_e2_working_directory_through_another_process(bench):
    """With the host's processes in view, their roots are a magic link away."""
    pod = await bench.pod(NamespaceOptions(pid=NamespaceMode.NODE))
    box = await pod.start("echo ready; exec sleep 100")
    await box.says("ready")
    for where in ("root", "cwd", "root/etc", "task/{0}/root", "root/proc/1/cwd"):
        cwd = f"/proc/{os.getpid()}/{where.format(os.getpid())}"
        result = await box.exec("pwd; ls", lambda process, cwd=cwd: replace(process, cwd=cwd))
        assert result.error, (cwd, result)
        result = await pod.run("pwd; ls", working_dir=cwd)
        assert result.error, (cwd, result)
    result = await box.exec("pwd", lambda process: replace(process, cwd="/proc/self/root/etc"))
    assert result.out == "/etc\n"


async def test_e2_working_directory_through_a_link_of_the_image(pod, tmp_path):
    place = tmp_path / "layer"
    place.mkdir()
    for number in range(3, 21):
        (place / f"link{number}").symlink_to(f"/proc/self/fd/{number}/..")
    box = await pod.start("echo ready; exec sleep 100", layers=[place])
    await box.says("ready")
    for number in range(3, 21):
        cwd = f"/link{number}"
        assert (await pod.run("pwd", layers=[place], working_dir=cwd)).error, cwd
        assert (await box.exec("pwd", lambda p, cwd=cwd: replace(p, cwd=cwd))).error, cwd


_DESCRIPTORS = "ls /proc/self/fd"


async def test_e2_only_the_standard_streams_are_open(pod):
    box = await pod.start(f"{_DESCRIPTORS}; echo end; exec sleep 100")
    # One more is ls's own.
    assert (await box.says("end")).split() == ["0", "1", "2", "3", "end"]
    assert (await box.exec(_DESCRIPTORS)).out.split() == ["0", "1", "2", "3"]


async def test_e2_nothing_of_ours_is_open_in_a_terminal(pod):
    box = await pod.start(f"{_DESCRIPTORS}; read line", tty=True, stdin=False)
    master, seen = box.terminal(), b""
    while seen.count(b"\n") < 1 or b"3" not in seen:
        seen += os.read(master, 4096)
    os.write(master, b"\n")
    assert seen.split() == [b"0", b"1", b"2", b"3"]
    assert (await box.ended()).code == 0
