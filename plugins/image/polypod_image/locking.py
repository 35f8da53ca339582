"""One process uses a store at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from polypod.plugin.errors import FailedPrecondition


def lock(path: Path) -> int:
    """Take the lock and return its descriptor: closing it lets go.

    Raises:
        FailedPrecondition: another process has it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise FailedPrecondition(
            f"{path.parent}: another server uses this image store; give this one its own server.root"
        ) from None
    return descriptor
