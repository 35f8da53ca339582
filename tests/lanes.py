"""Run every test in two lanes at once: virtual machines in one, all else in the other.

A machine without hardware acceleration keeps one processor busy for minutes, and waits for nothing; the other
tests wait for most of their time. Each lane is a run of pytest of its own, with its own mount namespace, cgroup,
directory and memory of what failed.

``python tests/lanes.py [--again] [PYTEST WORDS]``: with ``--again`` only what failed last is run, lane after lane.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MACHINES = ("tests/contract/test_vm.py", "tests/integration/vm")
_NOTHING_RAN = 5
"""pytest's exit status where no test was collected: none failed last time, or the words choose none."""
_NICE = 5
"""The lane of machines gives way: tests of the other one look at processes that run."""


def lanes() -> dict[str, list[str]]:
    """Return name → words for pytest."""
    rest = [f"--ignore={each}" for each in MACHINES]
    return {
        "machines": ["-o", "cache_dir=.pytest_cache/machines", *MACHINES],
        "all else": [*rest, "tests"],
    }


def command(words: list[str], more: list[str]) -> list[str]:
    """Return how one lane is run."""
    return [sys.executable, "-m", "pytest", *words, *more]


def both(more: list[str]) -> int:
    """Run the lanes side by side; show one as it goes and the other when it has ended."""
    words = lanes()
    with tempfile.TemporaryFile() as said:
        beside = subprocess.Popen(
            command(words["machines"], more),
            cwd=ROOT,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        os.setpriority(os.PRIO_PROCESS, beside.pid, _NICE)
        try:
            code = subprocess.run(
                command(words["all else"], more), cwd=ROOT, check=False
            ).returncode
            other = beside.wait()
        finally:
            if beside.poll() is None:
                beside.terminate()
                beside.wait()
        said.seek(0)
        sys.stdout.flush()
        sys.stdout.buffer.write(b"\n==== the lane of virtual machines ====\n" + said.read())
        sys.stdout.flush()
    ran = [each for each in (code, other) if each != _NOTHING_RAN]
    return max(ran) if ran else _NOTHING_RAN


def again(more: list[str]) -> int:
    """Run what failed last, one lane after the other; the last word of both."""
    failed = 0
    for words in lanes().values():
        last = ["--last-failed", "--last-failed-no-failures", "none"]
        code = subprocess.run(command(words, [*last, *more]), cwd=ROOT, check=False).returncode
        failed = failed or (0 if code == _NOTHING_RAN else code)
    return failed


def main() -> int:
    """Return pytest's exit status of the lane that failed, 0 if none did."""
    more = sys.argv[1:]
    if more[:1] == ["--again"]:
        return again(more[1:])
    return both(more)


if __name__ == "__main__":
    sys.exit(main())
