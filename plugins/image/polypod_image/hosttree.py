"""The tree of an image that is made of files of this host.

Links on the way to a file are kept as links (``/bin -> usr/bin``), so a program finds its files where it
expects them. What differs from host to host without being asked for (times, owners) is left out, and so are
the setuid and setgid bits: a test image needs no ``su``.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from polypod.plugin.errors import InvalidArgument, NotFound
from polypod_image.libraries import needed_files

MTIME: Final = 1_600_000_000
"""Seconds; of every file in such an image."""
_MAX_LINKS: Final = 40
_MAX_FILES: Final = 200_000


@dataclass(frozen=True, slots=True)
class Item:
    """One name of the image: exactly one of the sources is given, none for a directory."""

    mode: int
    content: bytes | None = None
    host: Path | None = None
    symlink: str = ""
    hardlink: str = ""

    @property
    def is_directory(self) -> bool:
        """Return whether it is a directory."""
        return self.content is None and self.host is None and not (self.symlink or self.hardlink)


class HostTree:
    """Collects what goes into the image."""

    def __init__(self) -> None:
        self.items: dict[str, Item] = {}
        """Absolute path without ``.``, ``..`` or links on the way → what is there."""

    def program(self, path: Path) -> str:
        """Add a program with all that it needs to start; return its path in the image.

        Raises:
            NotFound: it, its interpreter or a library is not on this host.
        """
        if not path.is_file():
            raise NotFound(f"{path}: there is no such program")
        place = self.host_path(path)
        for each in needed_files(path):
            self.host_path(each)
        self._interpreter(path)
        return place

    def host_path(self, path: Path) -> str:
        """Add a file of the host at its own path, with the links that lead to it; return where it lies."""
        done, todo = "/", list(reversed(path.absolute().parts[1:]))
        for _ in range(_MAX_LINKS * 8):
            if not todo:
                return done
            part = todo.pop()
            if part in ("..", "."):
                done = os.path.dirname(done) if part == ".." else done
                continue
            place = os.path.join(done, part)
            status = os.lstat(place)
            if stat.S_ISLNK(status.st_mode):
                target = str(Path(place).readlink())
                self._put(place, Item(0o777, symlink=target))
                done = "/" if target.startswith("/") else done
                todo += reversed([each for each in target.split("/") if each])
                continue
            if stat.S_ISDIR(status.st_mode):
                self.directory(place, stat.S_IMODE(status.st_mode) & 0o1777)
            elif stat.S_ISREG(status.st_mode):
                self._put(place, Item(stat.S_IMODE(status.st_mode) & 0o777, host=Path(place)))
            else:
                raise InvalidArgument(f"{place}: neither a file nor a directory")
            done = place
        raise InvalidArgument(f"{path}: too many links on the way")

    def copy(self, source: Path, target: str) -> None:
        """Add a file, or a directory with all below it, of the host at another path."""
        if not target.startswith("/"):
            raise InvalidArgument(f"{source}:{target}: the path in the image must be absolute")
        try:
            status = source.stat()
        except OSError as error:
            raise NotFound(f"{source}: {error.strerror}") from error
        place = self.resolve(target)
        self._parents(place)
        if not stat.S_ISDIR(status.st_mode):
            self._put(place, Item(stat.S_IMODE(status.st_mode) & 0o777, host=source))
            return
        self.directory(place, stat.S_IMODE(status.st_mode) & 0o1777)
        for each in sorted(source.iterdir()):
            self._copy_below(each, f"{place.rstrip('/')}/{each.name}")

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Add a file with a content of our own, unless the path is taken."""
        place = self.resolve(path)
        if place not in self.items:
            self._parents(place)
            self._put(place, Item(mode, content=content))

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory, unless the path is taken."""
        place = self.resolve(path)
        if place != "/" and place not in self.items:
            self._parents(place)
            self._put(place, Item(mode))

    def link(self, path: str, to: str) -> None:
        """Add a hard link to a file of the image, unless the path is taken."""
        place = self.resolve(path)
        if place not in self.items:
            self._parents(place)
            self._put(place, Item(0o755, hardlink=to))

    def resolve(self, path: str) -> str:
        """Return where a path leads in the image, following its links; the last part may be new."""
        done, todo = "/", [part for part in reversed(path.split("/")) if part]
        for _ in range(_MAX_LINKS * 8):
            if not todo:
                return done
            part = todo.pop()
            if part in ("..", "."):
                done = os.path.dirname(done) if part == ".." else done
                continue
            place = os.path.join(done, part)
            item = self.items.get(place)
            if item is None or not item.symlink:
                done = place
                continue
            done = "/" if item.symlink.startswith("/") else done
            todo += reversed([each for each in item.symlink.split("/") if each])
        raise InvalidArgument(f"{path}: too many links on the way")

    def tar(self) -> bytes:
        """Return the tree as one layer: the same bytes for the same files."""
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
            # Hard links last: what they lead to is there by then.
            for path in sorted(
                self.items, key=lambda each: (bool(self.items[each].hardlink), each)
            ):
                _add(tar, path, self.items[path])
        return out.getvalue()

    def _interpreter(self, path: Path) -> None:
        """Add what a script's first line names."""
        with path.open("rb") as file:
            line = file.readline(256)
        if not line.startswith(b"#!"):
            return
        words = line[2:].decode(errors="replace").split()
        if words and Path(words[0]).is_file():
            self.program(Path(words[0]))

    def _copy_below(self, source: Path, place: str) -> None:
        status = source.lstat()
        if stat.S_ISLNK(status.st_mode):
            self._put(place, Item(0o777, symlink=str(source.readlink())))
        elif stat.S_ISDIR(status.st_mode):
            self._put(place, Item(stat.S_IMODE(status.st_mode) & 0o1777))
            for each in sorted(source.iterdir()):
                self._copy_below(each, f"{place}/{each.name}")
        elif stat.S_ISREG(status.st_mode):
            self._put(place, Item(stat.S_IMODE(status.st_mode) & 0o777, host=source))

    def _parents(self, place: str) -> None:
        for parent in reversed(PurePosixPath(place).parents):
            text = str(parent)
            if text != "/" and text not in self.items:
                self._put(text, Item(0o755))

    def _put(self, place: str, item: Item) -> None:
        self.items[place] = item
        if len(self.items) > _MAX_FILES:
            raise InvalidArgument(f"more than {_MAX_FILES} files")


def _add(tar: tarfile.TarFile, path: str, item: Item) -> None:
    info = tarfile.TarInfo(path.lstrip("/"))
    info.mode, info.mtime = item.mode, MTIME
    if item.symlink:
        info.type, info.linkname = tarfile.SYMTYPE, item.symlink
    elif item.hardlink:
        info.type, info.linkname = tarfile.LNKTYPE, item.hardlink.lstrip("/")
    elif item.is_directory:
        info.type = tarfile.DIRTYPE
    for content in _contents(item):
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
        return
    tar.addfile(info)


def _contents(item: Item) -> Iterator[bytes]:
    if item.content is not None:
        yield item.content
    elif item.host is not None:
        yield item.host.read_bytes()
