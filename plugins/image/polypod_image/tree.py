"""The tree that one layer is unpacked into: every name is reached through descriptors, one step at a time.

Parents are resolved here and not by the kernel: a component that is missing in this layer is looked up
in the layers below, so that ``lib/x`` lands in ``usr/lib`` where a lower layer has ``lib -> usr/lib``, and
so that a directory made in passing has the attributes which the lower one shows. Each step is one
``openat(O_NOFOLLOW|O_DIRECTORY)`` below the layer's own root, ``..`` and absolute links stay within it:
what ``openat2(RESOLVE_IN_ROOT|RESOLVE_NO_MAGICLINKS)`` promises, with the lower layers seen as well.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from polypod.plugin.errors import InvalidArgument
from polypod_image.directories import Directory, OpenDirectories, duplicate, join
from polypod_image.merged import (
    MAX_LINKS,
    OPAQUE,
    MergedView,
    Node,
    is_whiteout,
    kept_xattrs,
    split,
)

_MAX_KNOWN: Final = 10_000
"""Names of lower layers that are remembered."""
_MAX_PATH: Final = 3500
"""Bytes of a path within a layer: with the store's own path before it, the kernel still takes it."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a directory gets beside its name."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: Mapping[bytes, bytes]


class LayerTree:
    """The directory of one layer in the making."""

    def __init__(
        self, root: int, gone: int, lower: MergedView | None, count: Callable[[], None]
    ) -> None:
        """Take over an empty directory.

        Args:
            root: its descriptor; stays the caller's.
            gone: descriptor of an empty directory beside it, for what an entry replaces.
            lower: the layers below; None for a base layer.
            count: called before each inode that is made.
        """
        self._directories = OpenDirectories(root)
        self._root = self._directories.root
        self._gone = gone
        self._replaced = 0
        self._lower = lower
        self._count = count
        self._linked = False
        self._below_known: dict[bytes, Node | None] = {}
        self._resolved: dict[bytes, bytes] = {}
        self._mtimes: dict[bytes, int] = {}
        self._opaque: set[bytes] = set()
        if lower is not None:
            self.describe(self._root, _attributes(lower.root))

    def close(self) -> None:
        """Close what is open."""
        self._directories.close()

    # Directories

    def known(self, head: bytes) -> Directory | None:
        """Return the directory that `parent` found for this text before, None if it may be another one now."""
        canonical = self._resolved.get(head)
        return None if canonical is None else self._directories.get(canonical)

    def parent(self, parts: list[bytes], mtime_ns: int, head: bytes | None = None) -> Directory:
        """Return the directory that holds the last of some components, making what is missing.

        Args:
            parts: of the entry's name.
            mtime_ns: for directories that nothing describes.
            head: the text before the last component, for `known`.

        Raises:
            InvalidArgument: something on the way is no directory, or links lead in circles.
        """
        key = b"/".join(parts[:-1])
        found = self.known(key)
        if found is None:
            found = self._walk(parts[:-1], mtime_ns)
            if len(self._resolved) > 50_000:
                self._resolved.clear()
            self._resolved[key] = found.path
            self._linked = self._linked or key != found.path
        if head is not None:
            self._resolved[head] = found.path
        return found

    def made(self) -> None:
        """Note that a name is new: it may hide a link of a lower layer that was followed before."""
        if self._linked:
            self._resolved.clear()
            self._linked = False

    def existing(self, parts: list[bytes]) -> tuple[Directory, bytes] | Node | None:
        """Return where a hard link's target is: in this layer (directory, name), or in one below.

        The directory's descriptor is a duplicate, which the caller closes.
        """
        canonical = self._canonical(parts[:-1])
        if canonical is None:
            return None
        name = parts[-1]
        directory = self._directories.find(canonical)
        if directory is not None:
            status = self.status(directory, name)
            if status is not None:
                return None if is_whiteout(status) else (duplicate(directory), name)
        return self._below(join(canonical, name))

    def make(self, parent: Directory, name: bytes, attributes: Attributes) -> None:
        """Make a directory, or give one that is there new attributes."""
        directory = self._enter(parent, name)
        self.describe(directory, attributes)

    def root(self) -> Directory:
        """Return the root."""
        return self._root

    def describe(self, directory: Directory, attributes: Attributes) -> None:
        """Set owner, mode and extended attributes; the time is set at the end."""
        os.fchown(directory.descriptor, attributes.uid, attributes.gid)
        os.fchmod(directory.descriptor, attributes.mode)
        for name, value in attributes.xattrs.items():
            os.setxattr(directory.descriptor, name, value)
        self._mtimes[directory.path] = attributes.mtime_ns

    def finish(self) -> None:
        """Set the times of directories: what was made in them has changed them."""
        for path in sorted(self._mtimes):
            stamp = self._mtimes[path]
            os.utime(self._directories.get(path).descriptor, ns=(stamp, stamp))

    # Names

    def status(self, directory: Directory, name: bytes) -> os.stat_result | None:
        """Return what this layer has under a name."""
        try:
            return os.stat(name, dir_fd=directory.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def clear(self, directory: Directory, name: bytes) -> None:
        """Remove what this layer has under a name, with all below it."""
        status = self.status(directory, name)
        if status is None:
            return
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=directory.descriptor)
            self._resolved.clear()
            return
        path = join(directory.path, name)
        self._forget(path)
        self._replaced += 1
        os.rename(
            name,
            b"%d" % self._replaced,
            src_dir_fd=directory.descriptor,
            dst_dir_fd=self._gone,
        )
        if self._below(path) is not None:
            # Something else takes the place of a directory: nothing of it shines through.
            self._opaque.add(path)

    # Whiteouts

    def white_out(self, directory: Directory, name: bytes) -> None:
        """Hide what the layers below have under a name; what this layer has stays."""
        path = join(directory.path, name)
        if self._below(path) is None:
            return
        status = self.status(directory, name)
        if status is None:
            self._count()
            os.mknod(name, 0o600 | stat.S_IFCHR, 0, dir_fd=directory.descriptor)
            self.made()
        elif stat.S_ISDIR(status.st_mode):
            self.make_opaque(self._enter(directory, name))

    def make_opaque(self, directory: Directory) -> None:
        """Hide what the layers below have in a directory; what this layer has stays."""
        if self._below(directory.path) is not None:
            os.setxattr(directory.descriptor, OPAQUE, b"y")
            self._opaque.add(directory.path)
            self.made()

    # Within

    def _below(self, canonical: bytes) -> Node | None:
        """Return what the lower layers show at a path, as far as this layer lets it shine through."""
        if self._lower is None:
            return None
        if self._opaque:
            if b"" in self._opaque:
                return None
            parts = canonical.split(b"/")
            if any(b"/".join(parts[:end]) in self._opaque for end in range(1, len(parts) + 1)):
                return None
        return self._shown_below(self._lower, canonical)

    def _shown_below(self, lower: MergedView, canonical: bytes) -> Node | None:
        """Return what the lower layers show at a path; remembers the way to it."""
        known = self._below_known
        missing: list[bytes] = []
        above = canonical
        while above and above not in known:
            above, _, name = above.rpartition(b"/")
            missing.append(name)
        node = known[above] if above else lower.root
        if len(known) > _MAX_KNOWN:
            known.clear()
        for name in reversed(missing):
            node = lower.child(node, name) if node is not None and node.is_directory else None
            above = join(above, name)
            known[above] = node
        return node

    def _walk(self, parts: list[bytes], mtime_ns: int) -> Directory:
        stack = [self._root]
        todo = parts[::-1]
        links = 0
        while todo:
            part = todo.pop()
            if part == b"..":
                del stack[max(1, len(stack) - 1) :]
                continue
            target = self._link(stack[-1], part)
            if target is None:
                here = self._directories.get(stack[-1].path)
                stack.append(self._pass(here, part, mtime_ns))
                continue
            links += 1
            if links > MAX_LINKS or len(todo) > _MAX_PATH:
                raise InvalidArgument("too many symbolic links on the way")
            if target.startswith(b"/"):
                del stack[1:]
            todo += split(target)[::-1]
        return self._directories.get(stack[-1].path)

    def _canonical(self, parts: list[bytes]) -> bytes | None:
        """Return the canonical path of a directory without making anything; None if there is none."""
        stack: list[bytes] = []
        todo = parts[::-1]
        links = 0
        while todo:
            part = todo.pop()
            if part == b"..":
                del stack[max(0, len(stack) - 1) :]
                continue
            here = self._directories.find(b"/".join(stack))
            target = self._link_at(here, b"/".join([*stack, part]), part)
            if target is None:
                stack.append(part)
                continue
            links += 1
            if links > MAX_LINKS or len(todo) > _MAX_PATH:
                return None
            if target.startswith(b"/"):
                stack.clear()
            todo += split(target)[::-1]
        return b"/".join(stack)

    def _link(self, directory: Directory, name: bytes) -> bytes | None:
        return self._link_at(
            self._directories.get(directory.path), join(directory.path, name), name
        )

    def _link_at(self, directory: Directory | None, path: bytes, name: bytes) -> bytes | None:
        """Return a symbolic link's target, in this layer or shining through; None for all else."""
        status = self.status(directory, name) if directory else None
        if directory and status is not None:
            if stat.S_ISLNK(status.st_mode):
                return os.readlink(name, dir_fd=directory.descriptor)
            return None
        below = self._below(path)
        if below is None or not below.is_symlink:
            return None
        return os.readlink(below.places[0])  # noqa: PTH115 - bytes

    def _pass(self, parent: Directory, name: bytes, mtime_ns: int) -> Directory:
        """Return a directory on the way, making it if this layer does not have it yet."""
        path = join(parent.path, name)
        known = self._directories.known(path)
        if known is not None:
            return known
        status = self.status(parent, name)
        if status is not None and stat.S_ISDIR(status.st_mode):
            return self._directories.get(path)
        if status is not None and not is_whiteout(status):
            raise InvalidArgument(f"{_shown(path)} is on the way and no directory")
        below = self._below(path) if status is None else None
        if below is not None and not below.is_directory:
            raise InvalidArgument(f"{_shown(path)} of a lower layer is on the way and no directory")
        directory = self._enter(parent, name)
        plain = Attributes(0o755, 0, 0, mtime_ns, {})
        self.describe(directory, plain if below is None else _attributes(below))
        return directory

    def _enter(self, parent: Directory, name: bytes) -> Directory:
        """Return a directory of this layer, in place of whatever else had the name."""
        path = join(parent.path, name)
        if len(path) > _MAX_PATH - 256:
            raise InvalidArgument(f"directories of more than {_MAX_PATH} bytes")
        status = self.status(parent, name)
        if status is not None and not stat.S_ISDIR(status.st_mode):
            whiteout = is_whiteout(status)
            self.clear(parent, name)
            if whiteout:
                self._opaque.add(path)
            status = None
        if status is None:
            self._count()
            os.mkdir(name, 0o700, dir_fd=parent.descriptor)
            self.made()
        directory = self._directories.enter(parent, name)
        if path in self._opaque:
            os.setxattr(directory.descriptor, OPAQUE, b"y")
        return directory

    def _forget(self, path: bytes) -> None:
        """Drop what is known of a directory that goes away."""
        self._directories.forget(path)
        below = path + b"/"
        for key in [key for key in self._mtimes if key == path or key.startswith(below)]:
            del self._mtimes[key]
        self._opaque = {each for each in self._opaque if not each.startswith(below)}
        self._resolved.clear()


def _attributes(node: Node) -> Attributes:
    status = node.status
    return Attributes(
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        kept_xattrs(node.places[0]),
    )


def _shown(path: bytes) -> str:
    return ascii(path[:200].decode(errors="backslashreplace"))
