"""Prints each step with what it took."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Steps:
    """The steps so far."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, float]] = []
        self.failed = False

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Time a step; a failing one is printed as such."""
        began = time.perf_counter()
        try:
            yield
        except BaseException:
            self._print(what, (time.perf_counter() - began) * 1e3, "FAILED")
            raise
        took_ms = (time.perf_counter() - began) * 1e3
        self.taken.append((what, took_ms))
        self._print(what, took_ms, "")

    def say(self, text: str) -> None:
        """Print what a step showed."""
        for line in text.rstrip("\n").splitlines():
            print(f"{'':14}| {line}")

    def summary(self) -> None:
        """Print the sum."""
        total_s = sum(took for _what, took in self.taken) / 1e3
        end = "failed" if self.failed else "done, nothing is left"
        print(f"\n{len(self.taken)} steps in {total_s:.2f} s: {end}")

    @staticmethod
    def _print(what: str, took_ms: float, mark: str) -> None:
        print(f"{took_ms:9.1f} ms  {what} {mark}".rstrip())
        sys.stdout.flush()
