"""Reads a CRI log file: ``TIME STREAM P|F TEXT`` lines, rotation included."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import BinaryIO


def split_line(line: bytes) -> tuple[bytes, bytes, bytes]:
    """Return (time, stream, what to print) of one log line without its newline.

    A partial line (tag ``P``) prints without a newline; a line that is not CRI's prints as it is.
    """
    parts = line.split(b" ", 3)
    if len(parts) < 3 or parts[1] not in {b"stdout", b"stderr"}:
        return b"", b"stdout", line + b"\n"
    text = parts[3] if len(parts) == 4 else b""
    end = b"" if parts[2].split(b":")[0] == b"P" else b"\n"
    return parts[0], parts[1], text + end


async def copy_log(
    path: Path,
    *,
    follow: bool,
    ended: asyncio.Event | None = None,
    timestamps: bool = False,
    tail: int | None = None,
) -> None:
    """Print a log file; with ``follow`` until ``ended`` is set and everything is read."""
    rest = b""
    file: BinaryIO | None = None
    try:
        while True:
            last_round = not follow or (ended is not None and ended.is_set())
            file = _reopened(path, file)
            while file is not None and (chunk := file.read(1 << 16)):
                *lines, rest = (rest + chunk).split(b"\n")
                if tail is None:
                    _print(lines, timestamps=timestamps)
                else:
                    rest, tail = _print_tail(file, [*lines, rest], tail, timestamps=timestamps)
            if last_round:
                return
            await asyncio.sleep(0.05)
    finally:
        if file is not None:
            file.close()


def _print_tail(
    file: BinaryIO, lines: list[bytes], tail: int, *, timestamps: bool
) -> tuple[bytes, None]:
    """Read on to the present end, print the last lines of it; later lines are all printed."""
    *whole, rest = (b"\n".join(lines) + file.read()).split(b"\n")
    _print(whole[-tail:] if tail else [], timestamps=timestamps)
    return rest, None


def _reopened(path: Path, file: BinaryIO | None) -> BinaryIO | None:
    """Open the file, or the new one of the same name after a rotation."""
    try:
        now = path.stat()
    except FileNotFoundError:
        return file
    if file is not None:
        known = os.fstat(file.fileno())
        if (known.st_dev, known.st_ino) == (now.st_dev, now.st_ino) or file.peek(1):  # type: ignore[attr-defined]
            return file
        file.close()
    return path.open("rb")


def _print(lines: list[bytes], *, timestamps: bool) -> None:
    for line in lines:
        time, stream, text = split_line(line)
        out = sys.stderr if stream == b"stderr" else sys.stdout
        out.buffer.write((time + b" " if timestamps and time else b"") + text)
    sys.stdout.flush()
    sys.stderr.flush()
