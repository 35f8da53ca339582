"""What a simulated process sees of the file system: its rootfs and its bind mounts."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from polypod.plugin.oci import OciMount
from polypod.plugin.rootfs import DirectoryRootfs, ErofsRootfs, OverlayRootfs, Rootfs

_READ_LIMIT = 16 * 1024 * 1024


class Files:
    """Reads and writes beneath a rootfs; links are refused, so nothing leads out of it."""

    def __init__(self, rootfs: Rootfs, mounts: Sequence[OciMount], *, read_only: bool) -> None:
        self._layers = _layers(rootfs)
        self._read_only = read_only
        binds = [m for m in mounts if m.source.startswith("/")]
        self._binds = sorted(binds, key=lambda m: len(m.destination), reverse=True)

    def read(self, path: str) -> bytes:
        """Return a file's content. OSError as from the kernel."""
        found = self._find(path)
        with found.open("rb") as file:
            return file.read(_READ_LIMIT)

    def exists(self, path: str) -> bool:
        """Return whether there is anything of that name."""
        try:
            return self._find(path).exists()
        except OSError:
            return False

    def names(self, path: str) -> list[str]:
        """Return the names in a directory. OSError as from the kernel."""
        bind = self._bind(path)
        bases = [bind[0]] if bind else self._layers
        inside = bind[1] if bind else path
        found: set[str] = set()
        for base in bases:
            place = _beneath(base, inside)
            if place.is_dir():
                found.update(each.name for each in place.iterdir())
        if not found and not self.exists(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return sorted(found)

    def write(self, path: str, data: bytes, *, append: bool) -> None:
        """Write a file. OSError as from the kernel."""
        bind = self._bind(path)
        if (bind is None and self._read_only) or (bind is not None and bind[2]):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        place = _beneath(bind[0], bind[1]) if bind else _beneath(self._layers[0], path)
        if bind is None:
            place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("ab" if append else "wb") as file:
            file.write(data)

    def _find(self, path: str) -> Path:
        bind = self._bind(path)
        if bind is not None:
            return _beneath(bind[0], bind[1])
        for base in self._layers:
            place = _beneath(base, path)
            if place.exists():
                return place
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def _bind(self, path: str) -> tuple[Path, str, bool] | None:
        """Return source, rest of the path, and read-only, if a bind mount covers the path."""
        for mount in self._binds:
            at = mount.destination.rstrip("/")
            if path == at or path.startswith(at + "/"):
                return Path(mount.source), path[len(at) :], "ro" in mount.options
        return None


def _layers(rootfs: Rootfs) -> list[Path]:
    """Return the directories that make a rootfs up, the writable one first."""
    match rootfs:
        case DirectoryRootfs(path):
            return [path]
        case OverlayRootfs(lowers, upper):
            return [upper, *lowers]
        case ErofsRootfs():
            return [rootfs.upper]
        case _:
            return [rootfs.scratch or rootfs.path]


def _beneath(base: Path, path: str) -> Path:
    place = base
    for part in os.path.normpath("/" + path).split("/"):
        place = place / part if part else place
        if place != base and place.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    return place
