"""Unpack one layer, confined to its own directory; nothing of the image is executed or trusted.

Whiteouts become what overlayfs knows: character device 0:0, and the mark ``trusted.overlay.opaque``.

Spec:
    image-spec layer.md, "Applying Changesets", "Whiteouts", "Opaque Whiteout". Reliability I1-I4.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from polypod.plugin.errors import BackendError, InvalidArgument, PolypodError, ResourceExhausted
from polypod.plugin.ids import Digest
from polypod_image.digests import hasher
from polypod_image.directories import Directory
from polypod_image.mediatypes import Compression
from polypod_image.merged import MergedView, Node, keeps_xattr, split
from polypod_image.meter import Meter
from polypod_image.options import DevicePolicy
from polypod_image.sparse import Sparse
from polypod_image.streams import ByteStream, Source, decompress, file_source, watched
from polypod_image.tar import Entry, Kind, TarReader
from polypod_image.tree import Attributes, LayerTree
from polypod_image.trees import NOT_SUMMED, Made, checksum, made

_WHITEOUT: Final = b".wh."
_OPAQUE_ENTRY: Final = b".wh..wh..opq"
_AUFS: Final = b".wh..wh."
_DOT: Final = ord(".")
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FULL: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM))
_ENTRYS_FAULT: Final = frozenset(
    (
        *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EEXIST, errno.EINVAL),
        *(errno.ENOENT, errno.EMLINK, errno.E2BIG, errno.EFBIG, errno.ERANGE, errno.EPERM),
    )
)
_MAX_LINK: Final = 4095


@dataclass(frozen=True, slots=True)
class LayerJob:
    """What is to be unpacked, and onto what."""

    blob: int
    """Descriptor of the blob, at its beginning."""
    compression: Compression
    diff_id: Digest
    lower: MergedView | None


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What came of it."""

    made: dict[int, Made]
    """Inode of each regular file → what the record of the tree says of it."""
    skipped: int
    """Device nodes that were left out."""


def unpack_layer(
    job: LayerJob,
    target: str,
    meter: Meter,
    ahead: Callable[[Source], Source] = lambda source: source,
) -> Unpacked:
    """Unpack a layer into ``target/fs``; ``target`` is empty and nobody else's.

    Belongs in a confined process: it takes nothing but its arguments.

    Args:
        job: what and onto what.
        target: where.
        meter: counts, and stops it.
        ahead: has decompression and hashing done elsewhere (`streams.Ahead.of`).

    Raises:
        InvalidArgument: the layer is malformed, hostile, beyond a limit, or not what diffID says.
        ResourceExhausted: no space; or less than the configured floor would be left.
        Unsupported: it has what this store does not accept.
    """
    Path(target, "fs").mkdir(0o755)
    Path(target, "gone").mkdir(0o700)
    root = _open_directory(f"{target}/fs")
    gone = _open_directory(f"{target}/gone")
    try:
        os.fchmod(root, 0o755)  # whatever the umask
        digest = hasher(job.diff_id)
        source = ahead(watched(decompress(file_source(job.blob), job.compression), digest))
        stream = ByteStream(watched(source, meter))
        tree = LayerTree(root, gone, job.lower, meter.inode)
        extractor = _Extractor(tree, stream, meter, {})
        try:
            extractor.run()
            stream.drain()
            tree.finish()
        finally:
            tree.close()
        found = f"{digest.name}:{digest.hexdigest()}"
        if found != job.diff_id:
            raise InvalidArgument(f"the layer unpacks to {found}, its config says {job.diff_id}")
    finally:
        for descriptor in (root, gone):
            os.close(descriptor)
    return Unpacked(extractor.made, extractor.skipped)


def _open_directory(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


class _Extractor:
    """Turns entries into names of a `LayerTree`."""

    def __init__(
        self, tree: LayerTree, stream: ByteStream, meter: Meter, files: dict[int, Made]
    ) -> None:
        self.made = files
        self.skipped = 0
        self._tree = tree
        self._stream = stream
        self._meter = meter
        self._makers: dict[Kind, Callable[[Entry, Directory, bytes], None]] = {
            Kind.FILE: self._file,
            Kind.SYMLINK: self._symlink,
            Kind.FIFO: self._fifo,
            Kind.CHAR: self._device,
            Kind.BLOCK: self._device,
        }

    def run(self) -> None:
        reader = TarReader(
            self._stream, max_entries=self._meter.limits.layer_inodes, takes_sparse=True
        )
        for entry in reader:
            try:
                self._entry(entry)
            except OSError as error:
                raise _explained(entry, error) from error
            except PolypodError as error:
                raise type(error)(f"entry {entry.shown()}: {error}") from error

    def _entry(self, entry: Entry) -> None:
        head, _, last = entry.name.rpartition(b"/")
        name = last
        known = self._tree.known(head) if name and name[0] != _DOT else None
        if known is not None and (make := self._makers.get(entry.kind)) is not None:
            make(
                entry, known, name
            )  # the usual case: one more name in a directory that was found before
            return
        parts = split(entry.name)
        if b".." in parts:
            raise InvalidArgument("'..' in a name: it could leave the layer")
        if not parts:
            if entry.kind is not Kind.DIRECTORY:
                raise InvalidArgument(f"a {entry.kind.value} in the place of the root directory")
            self._tree.describe(self._tree.root(), _attributes(entry))
            return
        name = parts[-1]
        if name.startswith(_WHITEOUT):
            self._whiteout(parts, name, entry)
            return
        if entry.kind is Kind.HARDLINK:
            self._hardlink(entry, parts)
            return
        # Of "dir/" and "dir/." the text before the last slash is no parent's.
        parent = self._tree.parent(parts, entry.mtime_ns, head if name == last else None)
        if entry.kind is Kind.DIRECTORY:
            self._tree.make(parent, name, _attributes(entry))
        else:
            self._makers[entry.kind](entry, parent, name)

    def _whiteout(self, parts: list[bytes], name: bytes, entry: Entry) -> None:
        if name == _OPAQUE_ENTRY:
            self._tree.make_opaque(self._tree.parent(parts, entry.mtime_ns))
            return
        if name.startswith(_AUFS):
            return  # aufs kept its own books in these
        hidden = name[len(_WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise InvalidArgument("a whiteout of nothing, or of a directory outside")
        self._tree.white_out(self._tree.parent(parts, entry.mtime_ns), hidden)

    def _file(self, entry: Entry, parent: Directory, name: bytes) -> None:
        size = entry.size if entry.holes is None else entry.holes.size
        if size > self._meter.limits.file_bytes:
            raise InvalidArgument(
                f"a file of {size} bytes; images.max_file_bytes allows "
                f"{self._meter.limits.file_bytes}"
            )
        # Its mode when it is made, so that it need not be changed; what only chmod can set comes after chown.
        descriptor = self._create(parent, name, entry.mode & 0o777)
        try:
            if entry.holes is None:
                total = self._content(descriptor, entry.size)
            else:
                total = self._fill(descriptor, entry.holes)
            self._tree.made()
            kept = _kept(entry) if entry.xattrs else None
            status = self._finished(descriptor, entry, kept)
            self.made[status.st_ino] = Made(total) if kept else made(status, total)
        finally:
            os.close(descriptor)

    def _content(self, descriptor: int, size: int) -> int:
        """Write the content of a file; return its checksum."""
        whole = self._stream.here(size)
        if whole is not None:
            if size:
                _write(descriptor, whole)
            return checksum(whole, 0)
        total = 0
        for piece in self._stream.pieces(size):
            total = checksum(piece, total)
            _write(descriptor, piece)
        return total

    def _finished(
        self, descriptor: int, entry: Entry, kept: Mapping[bytes, bytes] | None
    ) -> os.stat_result:
        """Give a file whose content is written everything else; return how it is then."""
        stamp = entry.mtime_ns
        os.utime(descriptor, ns=(stamp, stamp))
        status = os.fstat(descriptor)
        owned = status.st_uid == entry.uid and status.st_gid == entry.gid
        if owned and stat.S_IMODE(status.st_mode) == entry.mode and not kept:
            return status
        if not owned:
            os.fchown(descriptor, entry.uid, entry.gid)
        os.fchmod(descriptor, entry.mode)
        for key, value in (kept or {}).items():
            os.setxattr(descriptor, key, value)
        return os.fstat(descriptor)

    def _fill(self, descriptor: int, holes: Sparse) -> int:
        """Write the parts of a sparse file. What a reader will see counts, holes included (I4)."""
        stored = sum(length for _, length in holes.parts)
        self._meter.passed(holes.size - stored)
        os.ftruncate(descriptor, holes.size)
        for offset, length in holes.parts:
            os.lseek(descriptor, offset, os.SEEK_SET)
            for piece in self._stream.pieces(length):
                _write(descriptor, piece)
        return NOT_SUMMED

    def _create(self, parent: Directory, name: bytes, mode: int) -> int:
        self._meter.inode()
        try:
            return os.open(name, _CREATE, mode, dir_fd=parent.descriptor)
        except FileExistsError:
            self._tree.clear(parent, name)
            return os.open(name, _CREATE, mode, dir_fd=parent.descriptor)

    def _symlink(self, entry: Entry, parent: Directory, name: bytes) -> None:
        if not entry.link or len(entry.link) > _MAX_LINK:
            raise InvalidArgument("a symbolic link without a target, or with too long a one")
        self._meter.inode()
        try:
            os.symlink(entry.link, name, dir_fd=parent.descriptor)
        except FileExistsError:
            self._tree.clear(parent, name)
            os.symlink(entry.link, name, dir_fd=parent.descriptor)
        self._tree.made()
        os.chown(name, entry.uid, entry.gid, dir_fd=parent.descriptor, follow_symlinks=False)
        _set_time(entry, parent, name)

    def _hardlink(self, entry: Entry, parts: list[bytes]) -> None:
        to = split(entry.link)
        if not to or b".." in to:
            raise InvalidArgument(f"a hard link to {entry.link[:200]!r}, outside of the layer")
        target = self._tree.existing(to)
        if target is None:
            raise InvalidArgument(f"a hard link to {entry.link[:200]!r}, which is not there")
        if isinstance(target, Node):
            self._copy(target, self._tree.parent(parts, entry.mtime_ns), parts[-1])
            return
        directory, name = target
        try:
            parent = self._tree.parent(parts, entry.mtime_ns)
            if (directory.path, name) == (parent.path, parts[-1]):
                return
            self._link(directory, name, parent, parts[-1])
        finally:
            os.close(directory.descriptor)

    def _link(self, directory: Directory, old: bytes, parent: Directory, new: bytes) -> None:
        where = {"src_dir_fd": directory.descriptor, "dst_dir_fd": parent.descriptor}
        status = os.stat(old, dir_fd=directory.descriptor, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            raise InvalidArgument("a hard link to a directory")
        self._meter.inode()
        try:
            os.link(old, new, **where, follow_symlinks=False)
        except FileExistsError:
            self._tree.clear(parent, new)
            os.link(old, new, **where, follow_symlinks=False)
        self._tree.made()
        known = self.made.get(status.st_ino)
        if known is not None:
            self.made[status.st_ino] = Made(
                known.checksum
            )  # how many names it has is known at the end

    def _copy(self, target: Node, parent: Directory, name: bytes) -> None:
        """Make a hard link to a lower layer's file: a copy, as overlayfs would make it first."""
        status = target.status
        if not stat.S_ISREG(status.st_mode):
            raise InvalidArgument("a hard link to something of a lower layer that is no file")
        entry = Entry(
            name=name,
            kind=Kind.FILE,
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
            xattrs={
                os.fsencode(key): os.getxattr(target.places[0], key)
                for key in os.listxattr(target.places[0])
            },
        )
        source = os.open(target.places[0], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            stream = ByteStream(watched(file_source(source), self._meter))
            inner = _Extractor(self._tree, stream, self._meter, self.made)
            inner._file(entry, parent, name)
        finally:
            os.close(source)

    def _fifo(self, entry: Entry, parent: Directory, name: bytes) -> None:
        self._node(entry, parent, name, stat.S_IFIFO, 0)

    def _device(self, entry: Entry, parent: Directory, name: bytes) -> None:
        policy = self._meter.limits.devices
        if policy is DevicePolicy.REFUSE:
            raise InvalidArgument("a device node; images.devices says 'refuse'")
        kind = stat.S_IFCHR if entry.kind is Kind.CHAR else stat.S_IFBLK
        if kind == stat.S_IFCHR and entry.device == (0, 0):
            raise InvalidArgument(
                "character device 0:0 means a whiteout to overlayfs, to tar nothing"
            )
        if max(entry.device) >= 1 << 20:
            raise InvalidArgument(f"device numbers {entry.device} are too large")
        if policy is DevicePolicy.SKIP:
            self.skipped += 1
            return
        self._node(entry, parent, name, kind, os.makedev(*entry.device))

    def _node(self, entry: Entry, parent: Directory, name: bytes, kind: int, device: int) -> None:
        self._meter.inode()
        try:
            os.mknod(name, kind | 0o600, device, dir_fd=parent.descriptor)
        except FileExistsError:
            self._tree.clear(parent, name)
            os.mknod(name, kind | 0o600, device, dir_fd=parent.descriptor)
        os.chown(name, entry.uid, entry.gid, dir_fd=parent.descriptor, follow_symlinks=False)
        # Made a moment ago, by us, in a tree that is ours alone: no link can be in its place.
        os.chmod(name, entry.mode, dir_fd=parent.descriptor)
        _set_time(entry, parent, name)


def _set_time(entry: Entry, parent: Directory, name: bytes) -> None:
    stamp = (entry.mtime_ns, entry.mtime_ns)
    os.utime(name, ns=stamp, dir_fd=parent.descriptor, follow_symlinks=False)


def _attributes(entry: Entry) -> Attributes:
    return Attributes(entry.mode, entry.uid, entry.gid, entry.mtime_ns, _kept(entry))


def _kept(entry: Entry) -> dict[bytes, bytes]:
    return {key: value for key, value in entry.xattrs.items() if keeps_xattr(key)}


def _write(descriptor: int, piece: memoryview) -> None:
    written = os.write(descriptor, piece)
    while written < len(piece):
        piece = piece[written:]
        written = os.write(descriptor, piece)


def _explained(entry: Entry, error: OSError) -> PolypodError:
    text = f"entry {entry.shown()}: {error.strerror}"
    if error.errno in _FULL:
        return ResourceExhausted(
            f"{text}: the image store's file system or process is at its limit"
        )
    if error.errno in _ENTRYS_FAULT:
        return InvalidArgument(text)
    return BackendError(text)
