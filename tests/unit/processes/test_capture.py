"""Output of an exec in memory."""

import asyncio
import os
import signal
import subprocess

from polypod.processes.capture import Capture


async def run(capture: Capture, script: str) -> int:
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", script, stdout=capture.stdio.stdout, stderr=capture.stdio.stderr
    )
    capture.started()
    return await process.wait()


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_capture_keeps_the_streams_apart():
    capture = Capture(limit_bytes=1000)
    assert await run(capture, "echo out; echo err >&2; exit 3") == 3
    assert await capture.collect() == (b"out\n", b"err\n")
    capture.close()
    capture.close()


async def test_capture_cuts_at_the_limit_with_a_mark_and_does_not_block_the_process():
    capture = Capture(limit_bytes=100_000)
    await run(capture, "head -c 400000 /dev/zero; printf end >&2")
    stdout, stderr = await capture.collect()
    capture.close()
    assert len(stdout) == 100_000
    assert stdout.startswith(b"\0" * 99_000)
    assert stdout.endswith(b"[polypod: output cut off here]\n")
    assert stderr == b"end"


async def test_capture_of_exactly_the_limit_has_no_mark():
    capture = Capture(limit_bytes=70_000)
    await run(capture, "head -c 70000 /dev/zero")
    stdout, _ = await capture.collect()
    capture.close()
    assert stdout == b"\0" * 70_000


async def test_collect_does_not_wait_for_a_background_child():
    capture = Capture(limit_bytes=1000)
    await run(capture, "sleep 1000 & echo $!")
    # `sleep` has both pipes open still; this returns all the same.
    stdout, stderr = await capture.collect()
    capture.close()
    os.kill(int(stdout), signal.SIGKILL)
    assert stderr == b""


async def test_collect_ends_although_a_background_child_writes_for_ever():
    capture = Capture(limit_bytes=1000)
    process = subprocess.Popen(
        ["cat", "/dev/zero"], stdout=capture.stdio.stdout, stderr=capture.stdio.stderr
    )
    capture.started()
    await asyncio.sleep(0.05)
    stdout, _ = await capture.collect()
    capture.close()
    process.wait()
    assert len(stdout) == 1000


async def test_capture_leaves_no_descriptor_behind():
    before = open_fds()
    for _ in range(50):
        capture = Capture(limit_bytes=10)
        os.write(capture.stdio.stdout, b"x" * 100)
        capture.started()
        await asyncio.sleep(0)
        await capture.collect()
        capture.close()
    assert open_fds() == before
