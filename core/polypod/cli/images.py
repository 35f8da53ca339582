"""images, image, pull: what is in the store, and how to get something into it."""

from __future__ import annotations

import argparse
import tarfile
from pathlib import Path

from polypod.cli import pulling
from polypod.cli.command import (
    Command,
    Usage,
    emit,
    emit_json,
    json_flag,
    table,
    with_client,
)
from polypod.cli.extensions import command_types
from polypod.cli.pods import size
from polypod.client import CriClient, as_dict

_OFFERED = "image-"
"""What a plugin offers as ``image-NAME`` appears as ``image NAME``."""


def images(args: argparse.Namespace) -> int:
    """List images."""
    found = with_client(args, lambda cri: cri.list_images(args.reference))
    if args.json:
        emit_json([as_dict(image) for image in found])
        return 0
    rows = [
        (name, image.id.removeprefix("sha256:")[:13], size(image.size))
        for image in found
        for name in (image.repo_tags or image.repo_digests or ["-"])
    ]
    table(("NAME", "ID", "SIZE"), rows)
    return 0


def load(args: argparse.Namespace) -> int:
    """Import layouts and archives by PullImage with a reference that leads to the file."""

    async def work(cri: CriClient) -> list[str]:
        return [await cri.pull_image(archive_reference(path)) for path in args.paths]

    ids = with_client(args, work)
    emit_json(ids) if args.json else emit("\n".join(ids))
    return 0


def archive_reference(path: Path) -> str:
    """Return ``oci:…``, ``oci-archive:…`` or ``docker-archive:…`` for what lies at a path.

    Raises:
        Usage: it is none of the three.
    """
    full = path.absolute()
    if (full / "oci-layout").is_file():
        return f"oci:{full}"
    if not full.is_file():
        raise Usage(f"{path}: neither an OCI layout directory nor an archive")
    try:
        with tarfile.open(full) as archive:
            names = {name.removeprefix("./") for name in archive.getnames()}
    except (tarfile.TarError, OSError) as error:
        raise Usage(f"{path}: not a readable tar archive: {error}") from error
    if "oci-layout" in names:
        return f"oci-archive:{full}"
    if "manifest.json" in names:
        return f"docker-archive:{full}"
    raise Usage(f"{path}: neither an OCI nor a docker archive")


def remove(args: argparse.Namespace) -> int:
    """Remove images with all their names."""

    async def work(cri: CriClient) -> None:
        for reference in args.references:
            await cri.remove_image(reference)

    with_client(args, work)
    return 0


def inspect(args: argparse.Namespace) -> int:
    """Print all that is known of one image."""
    import json

    answer = with_client(args, lambda cri: cri.image_status(args.reference, verbose=True))
    if not answer.HasField("image"):
        raise Usage(f"no image {args.reference!r}; `polypod images` lists them")
    facts = {key: json.loads(value) for key, value in answer.info.items()}
    emit_json({"image": as_dict(answer.image), **facts})
    return 0


def _image_arguments(parser: argparse.ArgumentParser) -> None:
    sub = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (
        Command("load", "import layouts and archives", _load_arguments, load),
        Command("rm", "remove images with all their names", _references, remove),
        Command("inspect", "print all that is known of one image", _reference, inspect),
        *(
            Command(found.name.removeprefix(_OFFERED), found.summary, found.configure, found.run)
            for found in command_types()
            if found.name.startswith(_OFFERED)
        ),
    ):
        command.add_to(sub)


def _images_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", nargs="?", default="", help="only this image")
    json_flag(parser)


def _load_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    json_flag(parser)


def _references(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("references", nargs="+", metavar="IMAGE")


def _reference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", metavar="IMAGE")
    json_flag(parser)


COMMANDS = (
    Command(
        "images",
        "list images",
        _images_arguments,
        images,
        "  polypod images\n  polypod images localhost/demo:latest --json",
    ),
    Command(
        "image",
        "import, remove and inspect images",
        _image_arguments,
        lambda _args: 2,
        "  polypod image from-host /bin/busybox --applets --load\n"
        "  polypod image load ./layout\n  polypod image rm localhost/demo:latest",
    ),
    pulling.COMMAND,
)
