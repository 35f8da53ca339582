"""What a container is told in its environment lies in no memory of ours: every process that we clone has that."""

import os
import secrets
from pathlib import Path

import pytest

from polypod.plan import operations as op
from polypod.plan.operations import Plan

pytestmark = pytest.mark.needs_root


def found_in(pid: int, text: bytes) -> int:
    """Count a text in the memory of a process."""
    count = 0
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if "r" not in line.split()[1] or line.endswith(
                ("[vvar]", "[vsyscall]", "[vvar_vclock]")
            ):
                continue
            memory.seek(start)
            try:
                count += memory.read(end - start).count(text)
            except OSError:
                continue
    return count


async def test_environments_are_read_by_the_process_alone(place):
    host = await place.open()
    word = secrets.token_hex(16)
    shell = op.Execute(
        args=["sh", "-c", 'test -n "$SECRET" && exit 7'],
        env=["PATH=/bin:/usr/bin", f"SECRET={word}"],
        search=True,
    )
    for number in range(5):
        launched = await host.supervisor.launch(f"e{number}", Plan(0, [shell]), fds=[], hold=True)
        os.close(launched.pidfd)
        assert found_in(launched.pid, word.encode()) > 0  # so it can be found
        await host.supervisor.release(f"e{number}")
        assert (await host.supervisor.wait(f"e{number}")).code == 7
    for role, pid in (await host.pids()).items():
        assert found_in(pid, word.encode()) == 0, role
