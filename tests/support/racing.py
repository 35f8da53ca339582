"""Somebody who swaps two names as fast as the kernel can, while containers start."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

# RENAME_EXCHANGE: at no moment is a name missing. It ends with whoever started it.
_SWAP = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
os.chdir(sys.argv[1])
one, other = sys.argv[2].encode(), sys.argv[3].encode()
parent, count = int(sys.argv[4]), 0
print("ready", flush=True)
while os.getppid() == parent:
    libc.renameat2(-100, one, -100, other, 2)
    count += 1
    if count == 10000:
        print("many", flush=True)
"""


class Racer:
    """Swaps two names in a directory; both must exist."""

    def __init__(self, place: Path, one: str, other: str) -> None:
        code = [sys.executable, "-I", "-S", "-c", _SWAP, str(place), one, other, str(os.getpid())]
        self._process = subprocess.Popen(code, stdout=subprocess.PIPE)
        self._line()

    def __enter__(self) -> Racer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    async def swapped_often(self) -> None:
        """Return once there were 10,000 swaps."""
        assert await asyncio.to_thread(self._line) == b"many\n"
