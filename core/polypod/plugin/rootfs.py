"""Rootfs forms: how an image store hands a root file system to a backend.

A rootfs is a *description*; the backend alone mounts it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class RootfsForm(StrEnum):
    """The forms that a backend accepts and a store can make."""

    OVERLAY = "overlay"
    DIRECTORY = "directory"
    EROFS = "erofs"
    BLOCK = "block"


@dataclass(frozen=True, slots=True)
class OverlayRootfs:
    """Layers for overlayfs: ``lowers`` topmost first, as mount(8) has it."""

    lowers: tuple[Path, ...]
    upper: Path
    work: Path
    options: tuple[str, ...] = ()
    """Further mount options, such as ``volatile``."""


@dataclass(frozen=True, slots=True)
class ErofsRootfs:
    """One read-only erofs image of all layers, mounted from its file, below a writable overlay.

    One mount and one lower layer however many the image has; Linux 6.12 and later need no loop device for it.
    """

    image: Path
    upper: Path
    work: Path
    options: tuple[str, ...] = ()
    """Further mount options of the overlay, such as ``volatile``."""


@dataclass(frozen=True, slots=True)
class DirectoryRootfs:
    """A plain directory of the container's own."""

    path: Path


@dataclass(frozen=True, slots=True)
class BlockRootfs:
    """A read-only file system image, and a scratch file for what is written."""

    path: Path
    fstype: str
    scratch: Path | None = None


Rootfs = OverlayRootfs | ErofsRootfs | DirectoryRootfs | BlockRootfs
