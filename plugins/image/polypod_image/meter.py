"""Counts what unpacking costs, and stops it: bytes, inodes, free space, the store's end.

Spec:
    Reliability I4.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from polypod.plugin.errors import InvalidArgument, ResourceExhausted
from polypod_image.options import Limits

_BYTES_BETWEEN_LOOKS: Final = 32 << 20
_INODES_BETWEEN_LOOKS: Final = 1024


class Meter:
    """For one layer."""

    __slots__ = (
        *("_look_bytes", "_look_inodes", "_looked", "_place", "_shown"),
        *("bytes", "inodes", "limits"),
    )

    def __init__(
        self,
        place: str,
        limits: Limits,
        looked: Callable[[], None] = lambda: None,
        shown: str = "",
    ) -> None:
        """Begin at zero.

        Args:
            place: a directory of the file system whose free space counts.
            limits: what is allowed.
            looked: called from time to time; what it raises ends the work.
            shown: what the place is called in errors, if not so.
        """
        self.limits = limits
        self.bytes = 0
        self.inodes = 0
        self._place = place
        self._looked = looked
        self._shown = shown
        self._look_bytes = 0
        self._look_inodes = 0

    def update(self, piece: bytes) -> None:
        """Count a piece that is about to be used."""
        self.passed(len(piece))

    def passed(self, count: int) -> None:
        """Count bytes."""
        self.bytes += count
        if self.bytes > self.limits.layer_bytes:
            raise InvalidArgument(
                f"more than {self.limits.layer_bytes} bytes unpacked (images.max_layer_bytes)"
            )
        if self.bytes >= self._look_bytes:
            self._look_bytes = self.bytes + _BYTES_BETWEEN_LOOKS
            self._look()

    def inode(self) -> None:
        """Count a name that is about to be made."""
        self.inodes += 1
        if self.inodes > self.limits.layer_inodes:
            raise InvalidArgument(
                f"more than {self.limits.layer_inodes} files (images.max_layer_inodes)"
            )
        if self.inodes >= self._look_inodes:
            self._look_inodes = self.inodes + _INODES_BETWEEN_LOOKS
            self._look()

    def _look(self) -> None:
        self._looked()
        check_space(self._place, self.limits.free_bytes, shown=self._shown)


def check_space(place: str, floor: int, wanted: int = 0, shown: str = "") -> None:
    """Make sure that a file system keeps its floor.

    Raises:
        ResourceExhausted: naming the directory and both figures.
    """
    status = os.statvfs(place)
    shown = shown or place
    free = status.f_bavail * status.f_frsize
    if free < floor + wanted:
        raise ResourceExhausted(
            f"{shown}: {free} bytes are free, {floor} must stay so (images.min_free_bytes)"
        )
    if status.f_files and status.f_favail < 1024:
        raise ResourceExhausted(f"{shown}: only {status.f_favail} inodes are free")
