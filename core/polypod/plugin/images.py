"""The contract of an image store: one content store, many rootfs forms."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from polypod.plugin.ids import ContainerId, Digest, ImageId
from polypod.plugin.requests import Auth
from polypod.plugin.rootfs import Rootfs, RootfsForm


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What of the image's config (image-spec, config.md) shapes a container."""

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    volumes: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = ""
    os: str = "linux"
    architecture: str = ""
    variant: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """One image: an id, its names, its config."""

    id: ImageId
    repo_tags: tuple[str, ...]
    """Canonical references with a tag, such as ``localhost/demo:latest``."""
    repo_digests: tuple[str, ...]
    """``name@digest`` of the manifest."""
    size_bytes: int
    """Blobs of the image: what a pull stores. Always > 0."""
    config: ImageConfig
    manifest_digest: Digest
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class FilesystemUsage:
    """How much a tree or store takes, and when that was sampled."""

    timestamp_ns: int
    mountpoint: Path
    used_bytes: int
    inodes_used: int
    limit_bytes: int | None = None
    """Size of the file system that it lies on; this and the next two None = not known."""
    inodes_total: int | None = None
    """Of that file system; some make inodes as they need them and have no number."""
    inodes_free: int | None = None


@dataclass(frozen=True, slots=True)
class PullProgress:
    """One step of a pull or an import: ``what`` is a digest or a name; total 0 = unknown."""

    what: str
    stage: str
    done_bytes: int
    total_bytes: int


ARRIVING = frozenset({"downloading", "downloaded"})
"""Stages in which ``done_bytes`` are bytes that came from elsewhere."""
Progress = Callable[[PullProgress], None]


@dataclass(frozen=True, slots=True)
class ImageContext:
    """What an opened store is given."""

    name: str
    options: Mapping[str, object]
    """``[images]`` of the configuration: ``hosts_dir``, ``oci_dirs`` (where ``oci:PATH`` may lead) …"""
    root: Path
    """The store's own directory (0700, exists; overlay layers lie below it)."""
    state: Path


@dataclass(frozen=True, slots=True)
class ImageStoreType:
    """What a plugin offers."""

    name: str
    summary: str
    open: Callable[[ImageContext], Awaitable[ImageStore]]
    forms: tuple[RootfsForm, ...]
    unusable: str = ""


@runtime_checkable
class Reloadable(Protocol):
    """An image store that takes a changed ``[images]`` table while it is open."""

    def check(self, options: Mapping[str, object], /) -> None:
        """Raise InvalidArgument if the table is wrong; change nothing."""
        ...

    def reload(self, options: Mapping[str, object], /) -> Sequence[str]:
        """Take the whole table; return the changed keys that only a new start can bring into force."""
        ...


@runtime_checkable
class Looks(Protocol):
    """An image store that can tell what lies in an image without giving it out."""

    async def has(self, image_id: ImageId, path: str, /) -> bool:
        """Tell whether the image has a file or directory there, links resolved beneath its root."""
        ...


@runtime_checkable
class Changes(Protocol):
    """An image store that can write down and take back what a container has changed in its root.

    The form is that of an image's layer (image-spec, layer.md): additions, and whiteouts for what is gone.
    """

    async def export_changes(self, container_id: ContainerId, file: Path, /) -> None:
        """Write the changes into a new file, an uncompressed tar; nothing is written where it has none."""
        ...

    async def apply_changes(self, container_id: ContainerId, file: Path, /) -> None:
        """Put changes into the fresh root of a container that was never started.

        Raises:
            InvalidArgument: the file is no layer, or a hostile one; the root is as it was.
        """
        ...


class ImageStore(Protocol):
    """Images by reference, and root file systems from them."""

    async def list(self) -> Sequence[Image]:
        """Return all images, newest first."""
        ...

    async def find(self, reference: str, /) -> Image | None:
        """Return the image of an id, id prefix (≥ 3 hex), tag, digest, tag + digest or short name.

        Raises:
            InvalidArgument: not a reference, or a prefix that fits more than one image.
        """
        ...

    async def pull(
        self, reference: str, /, *, auth: Auth | None = None, progress: Progress | None = None
    ) -> Image:
        """Bring an image into the store under the reference.

        Raises:
            NotFound: the source has no such image.
            Unsupported: this kind of reference cannot be pulled.
        """
        ...

    async def load(
        self, source: Path, /, *, names: Sequence[str] = (), progress: Progress | None = None
    ) -> Sequence[Image]:
        """Import an OCI layout directory, an oci-archive or a docker-archive file (kind detected).

        Args:
            source: directory or tar file.
            names: references to give instead of those in the archive.
            progress: called with each step.
        """
        ...

    async def remove(self, image_id: ImageId, /) -> None:
        """Remove all names of the image; disk space is freed behind the call. Unknown ids succeed."""
        ...

    async def prepare(
        self, container_id: ContainerId, image_id: ImageId, form: RootfsForm, /
    ) -> Rootfs:
        """Make a writable rootfs for a container, making the form of the image if it is missing.

        Idempotent for the same container.
        """
        ...

    async def image_file(self, image_id: ImageId, path: str, limit: int, /) -> bytes | None:
        """Return a small regular file of the image (``/etc/passwd``), resolved beneath its root.

        None if missing or not a regular file; InvalidArgument if larger than ``limit`` bytes.
        Links never lead out; fifos and devices are never opened.
        """
        ...

    async def release(self, container_id: ContainerId, /) -> None:
        """Give back a container's rootfs. Unknown ids succeed."""
        ...

    async def prepared(self) -> Sequence[ContainerId]:
        """Return the containers that have a rootfs: recovery releases those without a record."""
        ...

    async def writable_usage(self, container_id: ContainerId, /) -> FilesystemUsage | None:
        """Return the last background sample of the writable layer; None if there is none yet."""
        ...

    async def filesystem_usage(self) -> FilesystemUsage:
        """Return what the store takes; works before any image exists."""
        ...

    async def close(self) -> None:
        """Stop background work."""
        ...
