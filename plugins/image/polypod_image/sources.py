"""What ``oci:PATH``, ``oci-archive:PATH`` and ``docker-archive:PATH`` lead to, and whether they may.

Spec:
    The transports' names and ``:REFERENCE`` behind the path are those of the containers/image tools.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from polypod.plugin.errors import InvalidArgument, NotFound
from polypod_image.archives import Archive, LayoutDirectory, TarArchive
from polypod_image.streams import Source


class Transport(StrEnum):
    """The kinds of local sources."""

    OCI = "oci"
    OCI_ARCHIVE = "oci-archive"
    DOCKER_ARCHIVE = "docker-archive"


KNOWN: Final = ", ".join(f"{each}:PATH" for each in Transport)


@dataclass(frozen=True, slots=True)
class LocalSource:
    """A local source of images."""

    transport: Transport
    path: Path
    """Real: no link in it."""
    wanted: str
    """The reference behind the path; ``""`` for none."""


def transport_of(reference: str) -> Transport | None:
    """Return the transport that a reference names; None for a name of a registry."""
    head, colon, rest = reference.partition(":")
    if colon and rest.startswith("/") and head in set(Transport):
        return Transport(head)
    return None


def locate(reference: str, transport: Transport, allowed: Sequence[Path]) -> LocalSource:
    """Return what a reference leads to. Blocks.

    Raises:
        InvalidArgument: it leads out of the allowed directories.
        NotFound: there is nothing.
    """
    text = reference.partition(":")[2]
    if "\0" in text or len(text) > 4096:
        raise InvalidArgument(f"{reference[:200]!r} is no path")
    for at in [len(text), *(index for index, each in enumerate(text) if each == ":")]:
        if os.path.lexists(text[:at]):
            # Each directory on the way may be a link; what counts is where it really leads.
            real = Path(os.path.realpath(text[:at]))
            if not any(real.is_relative_to(os.path.realpath(each)) for each in allowed):
                places = ", ".join(map(str, allowed)) or "nowhere"
                raise InvalidArgument(f"{reference}: images.oci_dirs allows paths below {places}")
            return LocalSource(transport, real, text[at + 1 :])
    raise NotFound(f"{reference}: there is no such file or directory")


def detect(path: Path) -> Transport:
    """Return what lies at a path, as far as a look at the path tells; an archive may still be docker's.

    Raises:
        NotFound: nothing is there.
    """
    if path.is_dir():
        return Transport.OCI
    if not path.exists():
        raise NotFound(f"{path}: there is no such file or directory")
    return Transport.OCI_ARCHIVE


def open_archive(
    source: LocalSource, unpacked: Callable[[Source], Path]
) -> tuple[Archive, Transport]:
    """Open a source; return the archive and its real kind, decided by what is in it.

    Raises:
        InvalidArgument: neither an OCI layout nor a docker archive.
    """
    archive: Archive
    if source.transport is Transport.OCI:
        if not source.path.is_dir():
            raise InvalidArgument(f"{source.path}: an OCI layout is a directory")
        archive = LayoutDirectory(source.path)
    else:
        archive = TarArchive(source.path, unpacked)
    is_docker = archive.has("manifest.json") and (
        source.transport is Transport.DOCKER_ARCHIVE or not archive.has("oci-layout")
    )
    if is_docker:
        return archive, Transport.DOCKER_ARCHIVE
    if archive.has("oci-layout") and archive.has("index.json"):
        return archive, source.transport
    archive.close()
    raise InvalidArgument(
        f"{source.path}: neither an OCI layout (oci-layout, index.json) nor a docker archive "
        "(manifest.json)"
    )
