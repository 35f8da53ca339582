"""What becomes of the program: exit codes, errors as a user reads them, the working directory (E2)."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay, pytest.mark.needs_busybox]


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$; sleep 9", 143), ("kill -9 $$", 137)],
)
async def test_exit_code(pod, script, code):
    # In a pid namespace of its own a first process ignores signals without a handler, even its own.
    result = await pod.run(("/bin/sh", "-c", f"sh -c '{script}'; exit $?"))
    assert result.error == ""
    assert result.code == code
