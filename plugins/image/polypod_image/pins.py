"""What running work uses: nothing that is pinned is collected.

The lock of `Pins` makes "is it there? then it is mine" and "nobody holds it? then away with it" one step each,
although imports run in threads.

Spec:
    Reliability I11: collection never deletes referenced content.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self
from weakref import WeakValueDictionary


class Pins:
    """Counts who holds which path."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: Counter[Path] = Counter()
        self._makers: WeakValueDictionary[Path, threading.Lock] = WeakValueDictionary()

    def lease(self) -> Lease:
        """Return a new, empty lease."""
        return Lease(self)

    def collect(self, path: Path, throw: Callable[[Path], bool]) -> bool:
        """Throw a path away unless somebody holds it; return whether it is gone."""
        with self._lock:
            return not self._held[path] and throw(path)

    def hold(self, path: Path) -> bool:
        """Hold a path; return whether it is there."""
        with self._lock:
            self._held[path] += 1
            return path.exists()

    def drop(self, paths: list[Path]) -> None:
        """Let paths go."""
        with self._lock:
            self._held.subtract(paths)
            for path in paths:
                if self._held[path] <= 0:
                    del self._held[path]

    def maker(self, path: Path) -> threading.Lock:
        """Return the lock that whoever makes this path takes: it is made once."""
        with self._lock:
            return self._makers.setdefault(path, threading.Lock())  # kept while somebody has it


class Lease:
    """What one import holds until its image is in the catalog."""

    def __init__(self, pins: Pins) -> None:
        self._pins = pins
        self._paths: list[Path] = []
        self.abandoned = False
        """Nobody waits any more: long work that is done for this lease ends."""

    def hold(self, path: Path) -> bool:
        """Hold a path; return whether it is there already."""
        self._paths.append(path)
        return self._pins.hold(path)

    def abandon(self) -> None:
        """End what is done for this lease; may be called by any thread."""
        self.abandoned = True

    def maker(self, path: Path) -> threading.Lock:
        """Return the lock of whoever makes this path."""
        return self._pins.maker(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pins.drop(self._paths)
        self._paths = []
