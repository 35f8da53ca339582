"""Where things lie below the store's root, and what stands for "whole" there.

::

    ROOT/                  0700
      catalog.db           names, images, layers (catalog.py)
      lock                 held by the one process that uses the store
      blobs/sha256/HEX     the content store: a blob is here only when it is whole and verified
      layers/HEX/fs        a layer unpacked, by chainID: here only when it is whole
      containers/ID/fs     what a container writes (upper), or its whole rootfs (form directory)
      containers/ID/work   overlayfs' own
      spare/ returned/     directories of containers: ready to be used, waiting to be cleaned
      work/                what is being made; emptied at open
      trash/               what is being deleted

Every move between these is one rename on one file system.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from polypod.plugin.errors import InvalidArgument
from polypod.plugin.ids import ContainerId, Digest
from polypod_image.digests import split

MAX_ROOT: Final = 400
"""Bytes of the root's path: the kernel takes 4096 in all, and layers have long paths of their own."""


@dataclass(frozen=True, slots=True)
class Places:
    """The paths below one root."""

    root: Path

    @property
    def catalog(self) -> Path:
        return self.root / "catalog.db"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    @property
    def layers(self) -> Path:
        return self.root / "layers"

    @property
    def containers(self) -> Path:
        return self.root / "containers"

    @property
    def spare(self) -> Path:
        return self.root / "spare"

    @property
    def returned(self) -> Path:
        return self.root / "returned"

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def trash(self) -> Path:
        return self.root / "trash"

    def blob(self, digest: Digest) -> Path:
        """Return where a blob lies; its path is made of the checked digest alone."""
        algorithm, digits = split(digest)
        return self.blobs / algorithm / digits

    def layer(self, chain_id: Digest) -> Path:
        """Return where a layer lies."""
        return self.layers / split(chain_id)[1]

    def container(self, container_id: ContainerId) -> Path:
        """Return a container's directory."""
        return self.containers / container_id

    def make(self) -> None:
        """Make the directories; nobody but root can look into them (CVE-2021-41103).

        Raises:
            InvalidArgument: the root's path is too long for what lies below it.
        """
        if len(os.fsencode(self.root)) > MAX_ROOT:
            raise InvalidArgument(f"{self.root}: longer than {MAX_ROOT} bytes: use a shorter path")
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root.chmod(0o700)
        for each in (
            self.blobs,
            self.blobs / "sha256",
            self.blobs / "sha512",
            self.layers,
            self.containers,
            self.spare,
            self.returned,
            self.work,
            self.trash,
        ):
            each.mkdir(mode=0o700, exist_ok=True)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
