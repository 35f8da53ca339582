"""What a container has changed in its root, as an image's layer, and back.

The upper directory of an overlay is nearly a layer: what is gone stands in it as a character device 0:0 and
in the form of an attribute, a layer says it with names (``.wh.NAME``, ``.wh..wh..opq``). A tree is read here only when
its container stands still. What comes back is unpacked by a confined process, as every layer is.

Spec:
    image-spec layer.md ("Representing Changes"); kernel Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from polypod.plugin.errors import FailedPrecondition
from polypod.plugin.ids import Digest
from polypod_image.mediatypes import Compression
from polypod_image.merged import is_opaque, is_whiteout, kept_xattrs
from polypod_image.places import Places
from polypod_image.trash import Trash
from polypod_image.unpackers import Unpackers

_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_FOREIGN: Final = ("trusted.overlay.redirect", "trusted.overlay.metacopy")


def export(upper: Path, file: Path) -> None:
    """Write an upper directory as an uncompressed layer.

    Raises:
        FailedPrecondition: the kernel has put something there that a layer cannot say.
        OSError: it cannot be read or written; the file is removed.
    """
    try:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        with (
            os.fdopen(os.open(file, flags, 0o600), "wb") as opened,
            tarfile.open(fileobj=opened, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            _Exporter(archive, upper).run()
    except BaseException:
        file.unlink(missing_ok=True)
        raise


class _Exporter:
    """One walk."""

    def __init__(self, archive: tarfile.TarFile, upper: Path) -> None:
        self._archive = archive
        self._upper = upper
        self._links: dict[tuple[int, int], str] = {}

    def run(self) -> None:
        self._add(".", os.lstat(self._upper), self._upper)
        pending = [("", self._upper)]
        while pending:
            prefix, directory = pending.pop()
            with os.scandir(directory) as entries:
                names = sorted(entries, key=lambda each: each.name)
            for entry in names:
                facts = entry.stat(follow_symlinks=False)
                place = Path(entry.path)
                self._entry(prefix, entry.name, facts, place)
                if stat.S_ISDIR(facts.st_mode):
                    pending.append((f"{prefix}{entry.name}/", place))

    def _entry(self, prefix: str, name: str, facts: os.stat_result, place: Path) -> None:
        if is_whiteout(facts):
            self._mark(f"{prefix}{_WHITEOUT}{name}")
            return
        if stat.S_ISSOCK(facts.st_mode):
            return  # it belongs to a process that listened; a layer has no form for it
        for foreign in _FOREIGN:
            if foreign in os.listxattr(place, follow_symlinks=False):
                raise FailedPrecondition(f"{place} has {foreign}, which a layer cannot express")
        self._add(f"{prefix}{name}", facts, place)
        if stat.S_ISDIR(facts.st_mode) and is_opaque(os.fsencode(place)):
            self._mark(f"{prefix}{name}/{_OPAQUE}")

    def _mark(self, name: str) -> None:
        info = tarfile.TarInfo(name)
        info.mode = 0o600
        self._archive.addfile(info)

    def _add(self, name: str, facts: os.stat_result, place: Path) -> None:
        info = _header(name, facts, place)
        key = (facts.st_dev, facts.st_ino)
        if stat.S_ISREG(facts.st_mode) and facts.st_nlink > 1 and key in self._links:
            info.type, info.linkname, info.size = tarfile.LNKTYPE, self._links[key], 0
        self._links.setdefault(key, name)
        attributes = {
            f"SCHILY.xattr.{os.fsdecode(attribute)}": os.fsdecode(value)
            for attribute, value in kept_xattrs(os.fsencode(place)).items()
        }
        info.pax_headers = {**info.pax_headers, **attributes}
        if info.isreg() and info.size:
            with place.open("rb") as file:
                self._archive.addfile(info, file)
        else:
            self._archive.addfile(info)


def _header(name: str, facts: os.stat_result, place: Path) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode = stat.S_IMODE(facts.st_mode)
    info.uid, info.gid = facts.st_uid, facts.st_gid
    seconds, nanoseconds = divmod(facts.st_mtime_ns, 1_000_000_000)
    info.mtime = seconds
    kinds = {
        stat.S_IFREG: tarfile.REGTYPE,
        stat.S_IFDIR: tarfile.DIRTYPE,
        stat.S_IFLNK: tarfile.SYMTYPE,
        stat.S_IFCHR: tarfile.CHRTYPE,
        stat.S_IFBLK: tarfile.BLKTYPE,
        stat.S_IFIFO: tarfile.FIFOTYPE,
    }
    info.type = kinds[stat.S_IFMT(facts.st_mode)]
    if info.isreg():
        info.size = facts.st_size
    elif info.issym():
        info.linkname = str(place.readlink())
    elif info.isdev():
        info.devmajor, info.devminor = os.major(facts.st_rdev), os.minor(facts.st_rdev)
    if nanoseconds:
        info.pax_headers = {"mtime": f"{seconds}.{nanoseconds:09d}"}
    return info


def apply(
    file: Path,
    upper: Path,
    lowers: Sequence[Path],
    workshop: tuple[Places, Trash, Unpackers],
    ended: Callable[[], bool],
) -> None:
    """Put a layer in the place of an upper directory that nobody has mounted.

    Args:
        file: an uncompressed tar.
        upper: replaced in one rename by what was unpacked.
        lowers: what lies below it, topmost first.
        workshop: of the store.
        ended: asked several times a second.

    Raises:
        InvalidArgument: no layer, or a hostile one; the upper directory is as it was.
    """
    places, trash, unpackers = workshop
    made = places.work / f"changes-{secrets.token_hex(8)}"
    made.mkdir(mode=0o700)
    try:
        with file.open("rb") as opened:
            digest = Digest("sha256:" + hashlib.file_digest(opened, "sha256").hexdigest())
        unpackers.unpack(file, (Compression.NONE, digest), lowers, made, ended)
        upper.rename(made / "former")
        (made / "fs").rename(upper)
    finally:
        trash.throw(made)
