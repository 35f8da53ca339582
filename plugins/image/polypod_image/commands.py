"""``polypod image verify``, ``repair``, ``gc`` and ``df``: they read the store on disk, no server is asked.

`verify` and `df` look beside a running server as well. `repair` and `gc` change the store: they want it for
themselves, and containers go on running while the server is stopped for them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from polypod.plugin.errors import FailedPrecondition, InvalidArgument, NotFound

CONFIG: Final = Path("/etc/polypod/config.toml")
ROOT: Final = Path("/var/lib/polypod")
_STORE: Final = "images/content"
_WHERE_HELP: Final = "the server's root directory (server.root)"


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, help=f"{_WHERE_HELP}; default: --config's, or {ROOT}")
    parser.add_argument(
        "--config", type=Path, help=f"read server.root and [images] here ({CONFIG})"
    )
    parser.add_argument("--json", action="store_true", help="JSON instead of text")


def configure_verify(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``verify``."""
    _configure(parser)
    parser.add_argument("--deep", action="store_true", help="read every file of every layer, too")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="only these (default: all)")


def configure_repair(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``repair``."""
    _configure(parser)
    parser.add_argument("--deep", action="store_true", help="read every file of every layer, too")


def configure_gc(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``gc``."""
    _configure(parser)
    parser.add_argument("--dry-run", action="store_true", help="tell, and delete nothing")


configure_df = _configure


def verify(args: argparse.Namespace) -> int:
    """Check the store; the exit code is 1 if something is damaged."""
    from polypod_image.finding import find
    from polypod_image.inspection import look
    from polypod_image.inspection import verify as check
    from polypod_image.unpackers import Unpackers

    root, options = _place(args)
    unpackers = Unpackers(root, options.limits, options.unpackers)
    try:
        with look(root) as store:
            images = list(store.catalog.images.values())
            if args.images:
                wanted = [find(store.catalog, name) for name in args.images]
                for name, image in zip(args.images, wanted, strict=True):
                    if image is None:
                        raise NotFound(f"image {name!r} is not in the store")
                ids = {image.id for image in wanted if image is not None}
                images = [each for each in images if each.id in ids]
            found = check(store, unpackers, images, deep=args.deep)
    finally:
        unpackers.close()
    if args.json:
        _emit_json({"images": len(images), "findings": [asdict(each) for each in found]})
    else:
        for each in found:
            _emit(f"{each.kind} {each.digest}: {each.problem}\n  in {', '.join(each.images)}")
        what = f"{len(found)} things are damaged" if found else "all is well"
        more = "" if args.deep else "; --deep reads every file of every layer, too"
        _emit(f"{len(images)} images: {what}{more}")
    return 1 if found else 0


def repair(args: argparse.Namespace) -> int:
    """Mend the store; the exit code is 1 if something stays damaged."""
    from polypod_image.inspection import look
    from polypod_image.inspection import verify as check
    from polypod_image.repairing import opened
    from polypod_image.repairing import repair as mend
    from polypod_image.unpackers import Unpackers

    root, options = _place(args)
    unpackers = Unpackers(root, options.limits, options.unpackers)
    try:
        with look(root) as store:
            if store.live:
                raise FailedPrecondition(_live(root, "verify looks while it runs"))
            found = check(store, unpackers, store.catalog.images.values(), deep=args.deep)
    finally:
        unpackers.close()
    done = []
    if found:
        with opened(root, options) as inventory:
            told = (lambda _: None) if args.json else _tell
            done = mend(inventory, found, told)
    if args.json:
        _emit_json([asdict(each) for each in done])
    elif not found:
        _emit("nothing to repair")
    return 1 if any(each.left for each in done) else 0


def _tell(mended: Any) -> None:  # noqa: ANN401 - repairing.Mended, loaded when it is needed
    _emit(f"{mended.finding.kind} {mended.finding.digest}: {mended.finding.problem}")
    _emit(f"  {mended.done}")


def gc(args: argparse.Namespace) -> int:
    """Delete what no image and no container needs."""
    from polypod_image.containers import holdings
    from polypod_image.inspection import look, unneeded
    from polypod_image.repairing import opened

    root, options = _place(args)
    with look(root) as store:
        if store.live and not args.dry_run:
            raise FailedPrecondition(
                _live(root, "it collects by itself after each removal; --dry-run looks")
            )
        used = [held.image_id for held in holdings(store.places).values()]
        found = unneeded(store, used)
        live = store.live
    if not args.dry_run:
        with opened(root, options) as inventory:
            inventory.clean()
    total = sum(each.bytes for each in found)
    if args.json:
        items = [{"what": each.what, "bytes": each.bytes} for each in found]
        _emit_json({"deleted": not args.dry_run, "bytes": total, "items": items})
        return 0
    for each in found:
        _emit(f"{each.what}  {_size(each.bytes)}")
    verb = "would be deleted" if args.dry_run else "deleted"
    note = " (a pull that is under way may need some of it)" if live and found else ""
    _emit(f"{len(found)} things, {_size(total)}, {verb}{note}")
    return 0


def df(args: argparse.Namespace) -> int:
    """Tell what takes how much."""
    from polypod_image.containers import holdings
    from polypod_image.inspection import look, shares, unneeded
    from polypod_image.layers import disk_usage

    root, _ = _place(args)
    with look(root) as store:
        held = holdings(store.places)
        images = shares(store)
        lost = unneeded(store, [each.image_id for each in held.values()])
        written = {name: disk_usage(str(store.places.container(name)))[0] for name in held}
        total = disk_usage(str(root))[0]
    if args.json:
        _emit_json(
            {
                "total": total,
                "images": [asdict(each) for each in images],
                "containers": written,
                "unneeded": sum(each.bytes for each in lost),
            }
        )
        return 0
    rows: list[tuple[str, ...]] = [("IMAGE", "BLOBS", "LAYERS", "FORMS", "UNIQUE")]
    for share in images:
        sizes = (share.blobs, share.layers, share.blocks, share.unique)
        rows.append((share.names[0][:60], *map(_size, sizes)))
    _table(rows)
    _emit("UNIQUE is what removing that image alone would free; the rest it shares.")
    _emit(
        f"containers: {_size(sum(written.values()))} of {len(written)}; "
        f"needed by nobody: {_size(sum(each.bytes for each in lost))}; in all: {_size(total)}"
    )
    return 0


def _place(args: argparse.Namespace) -> tuple[Path, Any]:
    """Return the store's own directory and its options."""
    from polypod_image.options import parse

    tree = _config(args.config)
    server, images = tree.get("server", {}), tree.get("images", {})
    root = args.root or Path(str(server.get("root", ROOT)))
    return (root.absolute() / _STORE).resolve(), parse(images)


def _config(path: Path | None) -> Mapping[str, Any]:
    if path is None and not CONFIG.exists():
        return {}
    try:
        return tomllib.loads((path or CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"{path or CONFIG}: {error}") from error


def _live(root: Path, otherwise: str) -> str:
    return (
        f"{root}: a server uses this store ({otherwise}). Stop the server for it: containers go on "
        "running, and it takes them over again when it starts"
    )


def _size(count: int) -> str:
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def _table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        _emit(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def _emit(text: str) -> None:
    sys.stdout.write(text + "\n")


def _emit_json(value: object) -> None:
    _emit(json.dumps(value, indent=2, sort_keys=True))
