"""Root file systems of containers: given out in one rename, cleaned and used again behind the answer.

Making and removing directories is dear on ext4 when many come and go, so the pair of upper and work
directory of a container that is gone is emptied in the background and given to a later one; `prepare` takes
a ready pair and renames it. Which image a container has stands in an extended attribute of its directory:
written before the rename, so a container's directory is either whole or not there.

Spec:
    kernel Documentation/filesystems/overlayfs.rst, "Volatile mount". performance.md §6 (ext4 pitfall).
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from polypod.plugin.errors import BackendError
from polypod.plugin.ids import ContainerId, ImageId
from polypod.plugin.rootfs import RootfsForm
from polypod_image.places import Places
from polypod_image.trash import Trash, empty_directory

log = logging.getLogger(__name__)

_NOTE: Final = "trusted.polypod.image"
_READY: Final = 32
"""Pairs that are kept ready."""
_GATHER_S: Final = 0.05
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PLAIN_MODE: Final = 0o755
# linux/fs.h: _IOR('f', 1, long), _IOW('f', 2, long), which take an int; chattr(1) calls the flag T.
_FS_IOC_GETFLAGS: Final = 0x80086601
_FS_IOC_SETFLAGS: Final = 0x40086602
_FS_TOPDIR_FL: Final = 0x00020000


@dataclass(frozen=True, slots=True)
class Holding:
    """What a container has."""

    image_id: ImageId
    form: RootfsForm


class ContainerDirectories:
    """The directories of all containers. `take` and `give_back` are quick and may run in the event loop."""

    def __init__(self, places: Places, trash: Trash) -> None:
        """Use the directories of `Places`; what cannot be recycled goes to the trash."""
        self._places = places
        self._trash = trash
        self._held: dict[ContainerId, Holding] = {}
        self._ready: deque[Path] = deque()
        self._wake = threading.Event()
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="image-recycle", daemon=True)

    def open(self) -> None:
        """Read what there is, and begin to recycle. Blocks."""
        spread(self._places.spare)
        self._held = holdings(self._places)
        for each in self._places.containers.iterdir():
            if each.name not in self._held:
                self._return(each)
        for each in self._places.spare.iterdir():
            self._return(each)  # whatever was true of it before is made true again
        self._thread.start()
        self._wake.set()

    def close(self) -> None:
        """Stop recycling."""
        self._stop = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def held(self) -> Mapping[ContainerId, Holding]:
        """Return who has what."""
        return self._held

    def take(self, container_id: ContainerId, holding: Holding, root: tuple[int, int, int]) -> Path:
        """Give a container its directory with ``fs`` and ``work``; the same one if it has it already.

        Args:
            container_id: who.
            holding: which image, which form.
            root: mode, owner and group of the image's root directory.
        """
        place = self._places.container(container_id)
        if container_id in self._held:
            _forget_mount(place / "work")
            return place
        pair = self._pair()
        if root != (_PLAIN_MODE, 0, 0):
            os.chown(pair / "fs", root[1], root[2])
            os.chmod(pair / "fs", root[0])  # noqa: PTH101 - beside its chown
        self.adopt(container_id, holding, pair)
        return place

    def adopt(self, container_id: ContainerId, holding: Holding, made: Path) -> None:
        """Make a finished directory a container's own."""
        os.setxattr(made, _NOTE, f"{holding.form} {holding.image_id}".encode())
        made.rename(self._places.container(container_id))
        self._held[container_id] = holding

    def give_back(self, container_id: ContainerId) -> ImageId | None:
        """Take a container's directory away; return the image that it used."""
        holding = self._held.pop(container_id, None)
        if holding is None:
            return None
        self._return(self._places.container(container_id))
        return holding.image_id

    def _pair(self) -> Path:
        while self._ready:
            # The one that rests longest: each goes round in its own corner of the disk.
            pair = self._ready.popleft()
            if len(self._ready) < _READY // 2:
                self._wake.set()
            if pair.exists():
                return pair
        self._wake.set()
        return self._make()

    def _make(self) -> Path:
        pair = self._places.spare / secrets.token_hex(8)
        pair.mkdir(mode=0o700)
        (pair / "fs").mkdir(mode=_PLAIN_MODE)
        (pair / "fs").chmod(_PLAIN_MODE)
        (pair / "work").mkdir(mode=0o700)
        return pair

    def _return(self, path: Path) -> None:
        with suppress(FileNotFoundError):
            path.rename(self._places.returned / secrets.token_hex(8))
        self._wake.set()

    # In the background

    def _run(self) -> None:
        while not self._stop:
            self._wake.wait()
            # Beside requests each wake-up costs more than the cleaning: what comes together is cleaned together.
            time.sleep(_GATHER_S)
            self._wake.clear()
            try:
                self.recycle()
            except OSError as error:
                log.warning("%s cannot be cleaned: %s", self._places.returned, error)

    def recycle(self) -> None:
        """Clean what came back; keep `_READY` pairs ready, throw the rest away."""
        moved = False
        for path in list(self._places.returned.iterdir()):
            if self._stop:
                return
            if len(self._ready) < _READY and _is_pair(path):
                moved |= self._clean(path)
                clean = self._places.spare / path.name
                path.rename(clean)
                self._ready.append(clean)
            else:
                self._trash.throw(path)
        if moved:
            self._trash.wake()
        while len(self._ready) < _READY and not self._stop:
            self._ready.append(self._make())

    def _clean(self, pair: Path) -> bool:
        """Make a pair as good as new: nothing in it, plain owner and mode, no attributes.

        Returns:
            Whether something was moved into the trash.
        """
        moved = False
        _forget_mount(pair / "work")
        trash = os.open(self._places.trash, _OPEN_DIRECTORY)
        try:
            with suppress(OSError):
                os.removexattr(pair, _NOTE)
            for name, mode in (("fs", _PLAIN_MODE), ("work", 0o700)):
                directory = os.open(pair / name, _OPEN_DIRECTORY)
                try:
                    moved |= _reset(directory, mode, trash)
                finally:
                    os.close(directory)
        finally:
            os.close(trash)
        return moved


def _reset(directory: int, mode: int, trash: int) -> bool:
    moved = empty_directory(directory, trash)
    for name in os.listxattr(directory):
        os.removexattr(directory, name)  # overlayfs' marks of the former mount among them
    status = os.fstat(directory)
    if (status.st_uid, status.st_gid) != (0, 0):
        os.fchown(directory, 0, 0)
    if stat.S_IMODE(status.st_mode) != mode:
        os.fchmod(directory, mode)
    return bool(moved)


def _forget_mount(work: Path) -> None:
    """Remove the mark of a volatile overlay: one that was mounted before refuses a second mount with it.

    The mark warns of lost writes after a loss of power; a container does not survive that.
    """
    mark = work / "work/incompat/volatile"
    with suppress(OSError):
        (mark / "dirty").unlink()
        mark.rmdir()
        mark.parent.rmdir()


def _is_pair(path: Path) -> bool:
    return sorted(each.name for each in path.iterdir()) == ["fs", "work"]


def holdings(places: Places) -> dict[ContainerId, Holding]:
    """Return who has what, as it stands on disk."""
    noted = ((ContainerId(each.name), _note_of(each)) for each in places.containers.iterdir())
    return {name: holding for name, holding in noted if holding is not None}


def _note_of(path: Path) -> Holding | None:
    try:
        form, _, image_id = os.getxattr(path, _NOTE).decode().partition(" ")
        return Holding(ImageId(image_id), RootfsForm(form))
    except (OSError, ValueError):
        return None


def spread(directory: Path) -> None:
    """Let ext4 put each new directory below this one into another block group, as it does for /home.

    Where there is no journal ext4 looks, for each new inode, at all of the group that were deleted in the
    last minutes (performance.md §6): containers that come and go in one group cost milliseconds each.
    Other file systems have no such hint.
    """
    descriptor = os.open(directory, _OPEN_DIRECTORY)
    try:
        with suppress(OSError):
            flags = bytearray(4)
            fcntl.ioctl(descriptor, _FS_IOC_GETFLAGS, flags)
            wanted = int.from_bytes(flags, sys.byteorder) | _FS_TOPDIR_FL
            fcntl.ioctl(descriptor, _FS_IOC_SETFLAGS, wanted.to_bytes(4, sys.byteorder))
    finally:
        os.close(descriptor)


def check_filesystem(place: Path) -> None:
    """Make sure that a file system can hold layers and uppers.

    Raises:
        BackendError: it takes no ``trusted.*`` attributes.
    """
    try:
        os.setxattr(place, _NOTE, b"")
        os.removexattr(place, _NOTE)
    except OSError as error:
        raise BackendError(
            f"{place}: its file system cannot hold unpacked images ({error.strerror}): "
            "ext4, xfs, btrfs and tmpfs can, as root"
        ) from error
