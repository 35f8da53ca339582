"""``polypod image from-host``: a small image of this host's programs, without registry and without root.

Spec:
    image-spec image-layout.md (what is written). Issue 2, item 8.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from polypod.plugin.errors import InvalidArgument, NotFound
from polypod.plugin.ids import Digest, ImageId
from polypod_image import mediatypes
from polypod_image.applets import applets_of
from polypod_image.digests import digest_of, split
from polypod_image.documents import Descriptor, Manifest
from polypod_image.hosttree import MTIME, HostTree
from polypod_image.importing import canonical_json, descriptor_json, manifest_bytes
from polypod_image.platforms import host_platform
from polypod_image.references import LOCALHOST, parse_reference

DEFAULT_NAME: Final = "localhost/demo:latest"
_CREATED: Final = "2020-09-13T12:26:40Z"
"""`MTIME` as config.md writes it."""
_PASSWD: Final = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
_GROUP: Final = b"root:x:0:\nnogroup:x:65534:\n"
_DIRECTORIES: Final[Mapping[str, int]] = {
    "/dev": 0o755,
    "/etc": 0o755,
    "/proc": 0o555,
    "/root": 0o700,
    "/sys": 0o555,
    "/tmp": 0o1777,  # noqa: S108 - in the image
}
_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """What the image says of itself."""

    name: str = DEFAULT_NAME
    entrypoint: Sequence[str] = ()
    cmd: Sequence[str] = ()
    env: Sequence[str] = ()
    user: str = ""
    workdir: str = ""
    files: Sequence[tuple[Path, str]] = ()
    """(path on the host, path in the image); directories are copied with all below them."""
    applets: bool = False
    """Link busybox under the names of all its applets."""


def build(
    paths: Sequence[Path], destination: Path, settings: ImageSettings | None = None
) -> ImageId:
    """Build an image of host programs and write it as an oci-archive.

    The same files and settings give the same bytes.

    Args:
        paths: programs; bare names are looked up on PATH.
        destination: the archive file, replaced at once when it is whole.
        settings: name and config.

    Returns:
        The image's id.

    Raises:
        NotFound: a program, or a library that one needs, is not on this host.
        InvalidArgument: a setting is malformed.
    """
    settings = settings or ImageSettings()
    name = str(parse_reference(settings.name, domain=LOCALHOST))
    layer = _tree([_program(each) for each in paths], settings).tar()
    blobs: dict[Digest, bytes] = {}
    layer_at = _put(blobs, mediatypes.OCI_LAYER, layer)
    config_at = _put(blobs, mediatypes.OCI_CONFIG, _config(settings, layer_at.digest))
    manifest = Manifest(mediatypes.OCI_MANIFEST, config_at, (layer_at,))
    at = _put(blobs, mediatypes.OCI_MANIFEST, manifest_bytes(manifest))
    named = Descriptor(
        at.media_type,
        at.digest,
        at.size,
        host_platform(),
        {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name},
    )
    index = {
        "schemaVersion": 2,
        "mediaType": mediatypes.OCI_INDEX,
        "manifests": [descriptor_json(named)],
    }
    _write(destination, canonical_json(index), blobs)
    return ImageId(config_at.digest)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="programs of this host")
    parser.add_argument("--name", default=DEFAULT_NAME, help="reference (default: %(default)s)")
    parser.add_argument("--output", "-o", type=Path, help="write an oci-archive to this file")
    parser.add_argument("--load", action="store_true", help="pull the image into the server")
    parser.add_argument("--entrypoint", action="append", default=[], metavar="WORD")
    parser.add_argument("--cmd", action="append", default=[], metavar="WORD")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--user", default="", metavar="USER[:GROUP]")
    parser.add_argument("--workdir", default="", metavar="PATH")
    parser.add_argument(
        "--file",
        action="append",
        default=[],
        metavar="HOST:CONTAINER",
        help="a further file or directory of this host, and its path in the image",
    )
    parser.add_argument(
        "--applets", action="store_true", help="link busybox under its applets' names"
    )


def run(args: argparse.Namespace) -> int:
    """Build, write, load; return the exit code."""
    if args.output is None and not args.load:
        raise InvalidArgument("image from-host: give --load, --output FILE, or both")
    settings = ImageSettings(
        name=args.name,
        entrypoint=args.entrypoint,
        cmd=args.cmd,
        env=args.env,
        user=args.user,
        workdir=args.workdir,
        files=[_pair(each) for each in args.file],
        applets=args.applets,
    )
    with tempfile.TemporaryDirectory(prefix="polypod-image-") as scratch:
        output = args.output or Path(scratch) / "image.tar"
        image_id = build(args.paths, output, settings)
        if args.load:
            image_id = ImageId(asyncio.run(_load(args.endpoint, output.absolute())))
    sys.stdout.write(f"{image_id}\n")
    return 0


async def _load(endpoint: str, archive: Path) -> str:
    from polypod.client import CriClient

    async with CriClient(endpoint) as client:
        return await client.pull_image(f"oci-archive:{archive}")


def _pair(text: str) -> tuple[Path, str]:
    host, colon, inside = text.rpartition(":")
    if not colon or not host or not inside.startswith("/"):
        raise InvalidArgument(f"--file {text!r}: write HOST:CONTAINER, the second one absolute")
    return Path(host), inside


def _program(path: Path) -> Path:
    if "/" in str(path):
        return path.absolute()
    found = shutil.which(str(path))
    if found is None:
        raise NotFound(f"{path}: no such program on PATH")
    return Path(found)


def _tree(programs: Sequence[Path], settings: ImageSettings) -> HostTree:
    tree = HostTree()
    # The host's own links first: on a merged /usr, /bin leads to usr/bin in the image as well.
    for each in (Path("/bin"), Path("/sbin")):
        if each.is_symlink():
            tree.host_path(each)
    places = [(each, tree.program(each)) for each in programs]
    for host, inside in settings.files:
        tree.copy(host, inside)
    for directory, mode in _DIRECTORIES.items():
        tree.directory(directory, mode)
    tree.file("/etc/passwd", _PASSWD)
    tree.file("/etc/group", _GROUP)
    for path, place in places:
        if path.name.startswith("busybox"):
            names = applets_of(path.read_bytes()) if settings.applets else ("sh",)
            for name in names:
                tree.link(f"/bin/{name}", place)
    return tree


def _config(settings: ImageSettings, diff_id: Digest) -> bytes:
    for each in settings.env:
        if "=" not in each:
            raise InvalidArgument(f"env {each!r}: write NAME=VALUE")
    has_path = any(each.startswith("PATH=") for each in settings.env)
    config: dict[str, object] = {
        "Env": [*([] if has_path else [_PATH]), *settings.env],
        "Entrypoint": list(settings.entrypoint),
        "Cmd": list(settings.cmd),
        "User": settings.user,
        "WorkingDir": settings.workdir,
    }
    platform = host_platform()
    document: dict[str, object] = {
        "created": _CREATED,
        "os": platform.os,
        "architecture": platform.architecture,
        "config": {key: value for key, value in config.items() if value},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": _CREATED, "created_by": "polypod image from-host"}],
    }
    if platform.variant:
        document["variant"] = platform.variant
    return canonical_json(document)


def _put(blobs: dict[Digest, bytes], media_type: str, data: bytes) -> Descriptor:
    digest = digest_of(data)
    blobs[digest] = data
    return Descriptor(media_type, digest, len(data))


def _write(destination: Path, index: bytes, blobs: Mapping[Digest, bytes]) -> None:
    members = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index}
    members |= {"blobs/" + "/".join(split(digest)): data for digest, data in blobs.items()}
    fresh = destination.with_name(f".{destination.name}.{os.getpid()}")
    try:
        with tarfile.open(fresh, "w", format=tarfile.PAX_FORMAT) as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size, info.mode, info.mtime = len(data), 0o644, MTIME
                tar.addfile(info, io.BytesIO(data))
        fresh.replace(destination)
    except OSError as error:
        raise InvalidArgument(f"{destination}: cannot be written: {error.strerror}") from error
    finally:
        fresh.unlink(missing_ok=True)
