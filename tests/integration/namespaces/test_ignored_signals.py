"""A server started by nohup(1), a shell's ``&`` or posix_spawn(3) ignores signals; its containers do not."""

from __future__ import annotations

import ctypes
import os
import signal

import pytest

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay, pytest.mark.needs_busybox]
INHERITED = (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGRTMAX)
RESERVED = (32, 33)
"""The C library's own, which it lets nobody change: posix_spawn(3) leaves them ignored."""
SIGACTION = {"x86_64": 13, "aarch64": 134}[os.uname().machine]
IGNORE = (1).to_bytes(8, "little") + bytes(56)


def rt_sigaction(number, action):
    """Set a disposition behind the C library's back; return the one before."""
    before = ctypes.create_string_buffer(64)
    libc = ctypes.CDLL(None, use_errno=True)
    words = (ctypes.c_long(SIGACTION), number, action, before, ctypes.c_size_t(8))
    assert libc.syscall(*words) == 0, os.strerror(ctypes.get_errno())
    return before.raw


@pytest.fixture(scope="module", autouse=True)
def started_by_nohup():
    """Before the three processes of this file are started, so that they inherit it."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in INHERITED}
    reserved = {number: rt_sigaction(number, IGNORE) for number in RESERVED}
    yield
    for number, action in reserved.items():
        rt_sigaction(number, action)
    for number, handler in before.items():
        signal.signal(number, handler)


async def test_neither_a_first_process_nor_an_exec_ignores_them(pod):
    command = ("/bin/grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status")
    first = await pod.run(command)
    box = await pod.start("echo ready; exec sleep 100")
    await box.says("ready")
    for result in (first, await box.exec(command)):
        assert result.code == 0
        assert {line.split(":\t")[1] for line in result.lines} == {"0" * 16}
