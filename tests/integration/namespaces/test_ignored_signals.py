"""A server that was started by nohup(1) or by a shell's ``&`` ignores signals; its containers do not."""

from __future__ import annotations

import signal

import pytest

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay, pytest.mark.needs_busybox]
INHERITED = (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGRTMAX)


@pytest.fixture(scope="module", autouse=True)
def started_by_nohup():
    """Before the three processes of this file are started, so that they inherit it."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in INHERITED}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


async def test_neither_a_first_process_nor_an_exec_ignores_them(pod):
    command = ("/bin/grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status")
    first = await pod.run(command)
    box = await pod.start("echo ready; exec sleep 100")
    await box.says("ready")
    for result in (first, await box.exec(command)):
        assert result.code == 0
        # 32 and 33 are the C library's own: whoever started us may have them in any state.
        masks = {int(line.split(":\t")[1], 16) & ~(3 << 31) for line in result.lines}
        assert masks == {0}
