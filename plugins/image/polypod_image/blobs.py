"""The content store: blobs by digest. A blob has its name only when it is whole, verified and durable.

Spec:
    image-spec descriptor.md, "Digests" and "Verification". Reliability I6; performance.md §7.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from polypod.plugin.errors import InvalidArgument
from polypod.plugin.ids import Digest
from polypod_image.digests import hasher
from polypod_image.meter import check_space
from polypod_image.pins import Lease
from polypod_image.places import Places, sync_directory
from polypod_image.streams import Source

Told = Callable[[int], None]
"""Called with the bytes that are done."""
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Blobs:
    """Puts blobs in and gives them out. Every method blocks: it belongs in a thread."""

    def __init__(self, places: Places, free_bytes: int) -> None:
        """Use the directories of `Places`.

        Args:
            places: where.
            free_bytes: what must stay free on the file system.
        """
        self._places = places
        self._free_bytes = free_bytes

    def put(
        self, lease: Lease, source: Source, digest: Digest, size: int, told: Told | None = None
    ) -> None:
        """Store a blob whose descriptor is known, unless it is there.

        Raises:
            InvalidArgument: it is shorter or longer than promised, or has another digest.
            ResourceExhausted: no space.
        """
        place = self._places.blob(digest)
        with lease.maker(place):
            if lease.hold(place):
                self._check_size(place, digest, size)
                return
            check_space(str(self._places.root), self._free_bytes, size)
            found = self._write(source, place, (digest, size), told)
            if found != digest:
                raise InvalidArgument(f"blob {digest}: the content has the digest {found}")

    def put_unknown(
        self, lease: Lease, source: Source, limit: int, told: Told | None = None
    ) -> tuple[Digest, int]:
        """Store a blob that nothing describes; return its digest and size.

        Raises:
            InvalidArgument: it is larger than ``limit`` bytes.
        """
        check_space(str(self._places.root), self._free_bytes)
        fresh = self._places.work / f"blob-{secrets.token_hex(12)}"
        count = _Counted(source, limit, told)
        try:
            digest = Digest("sha256:" + _copy(count.read, fresh, hashlib.sha256()))
            place = self._places.blob(digest)
            with lease.maker(place):
                if lease.hold(place):
                    fresh.unlink()
                else:
                    self._name(fresh, place)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        return digest, count.size

    def read(self, digest: Digest, limit: int) -> bytes:
        """Return a small blob.

        Raises:
            InvalidArgument: it is larger than ``limit`` bytes.
            FileNotFoundError: it is not there.
        """
        descriptor = os.open(self._places.blob(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise InvalidArgument(f"blob {digest}: more than {limit} bytes")
        return data

    def sizes(self) -> dict[Digest, int]:
        """Return all blobs that are here."""
        found: dict[Digest, int] = {}
        for directory in self._places.blobs.iterdir():
            for each in directory.iterdir():
                try:
                    status = each.lstat()
                except FileNotFoundError:  # removed while we walk
                    continue
                if stat.S_ISREG(status.st_mode):
                    found[Digest(f"{directory.name}:{each.name}")] = status.st_size
        return found

    def age(self, digest: Digest) -> int:
        """Return when a blob came, in nanoseconds; 0 if it is not here."""
        try:
            return self._places.blob(digest).stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def _check_size(self, place: Path, digest: Digest, size: int) -> None:
        found = place.stat().st_size
        if found != size:
            raise InvalidArgument(f"blob {digest}: {found} bytes, its descriptor says {size}")

    def _write(
        self, source: Source, place: Path, wanted: tuple[Digest, int], told: Told | None
    ) -> str:
        """Write into a new file and give it the blob's name if digest and size are right."""
        digest, size = wanted
        fresh = self._places.work / f"blob-{secrets.token_hex(12)}"
        count = _Counted(source, size, told, f"blob {digest}")
        try:
            found = f"{digest.partition(':')[0]}:{_copy(count.read, fresh, hasher(digest))}"
            if count.size != size:
                raise InvalidArgument(
                    f"blob {digest}: {count.size} bytes came, its descriptor says {size}"
                )
            if found == digest:
                self._name(fresh, place)
        finally:
            fresh.unlink(missing_ok=True)
        return found

    def _name(self, fresh: Path, place: Path) -> None:
        fresh.rename(place)
        sync_directory(place.parent)


class _Counted:
    """A source with a limit."""

    def __init__(self, source: Source, limit: int, told: Told | None, what: str = "a blob") -> None:
        self._source = source
        self._limit = limit
        self._told = told
        self._what = what
        self.size = 0

    def read(self) -> bytes:
        piece = self._source()
        self.size += len(piece)
        if self.size > self._limit:
            raise InvalidArgument(f"{self._what}: more than the {self._limit} bytes it may have")
        if self._told is not None and piece:
            self._told(self.size)
        return piece


def _copy(source: Source, fresh: Path, digest: hashlib._Hash) -> str:
    """Write a source into a new file, durably; return the hex digest of what was written."""
    with open(os.open(fresh, _CREATE, 0o600), "wb", buffering=0) as file:
        while piece := source():
            digest.update(piece)
            view = memoryview(piece)
            while view:
                view = view[file.write(view) :]
        os.fdatasync(file.fileno())
    return digest.hexdigest()
