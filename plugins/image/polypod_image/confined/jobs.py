"""What a confined process does, one function for each kind of job. It sees `cell.TARGET` and `cell.lower`.

A request is JSON that the daemon wrote; what comes back is JSON that the daemon does not trust.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from polypod.plugin.ids import Digest
from polypod_image import trees
from polypod_image.confined import cell
from polypod_image.copying import copy_merged
from polypod_image.mediatypes import Compression
from polypod_image.merged import MergedView
from polypod_image.meter import Meter
from polypod_image.options import DevicePolicy, Limits
from polypod_image.streams import Ahead
from polypod_image.unpack import LayerJob, unpack_layer

MAX_FINDINGS: Final = 20
"""Differences that are told in words; the others are counted."""
_TREE: Final = f"{cell.TARGET}/fs"
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
Say = Callable[[Mapping[str, Any]], None]
Request = Mapping[str, Any]
Result = dict[str, Any]


Work = Callable[[Request, int, Say], Result]


def unpacking() -> Work:
    """Return what unpacks a layer into the target and writes the record of its tree."""
    ahead = Ahead()
    return lambda request, blob, say: _unpack(request, blob, say, ahead)


def _unpack(request: Request, blob: int, say: Say, ahead: Ahead) -> Result:

    def looked() -> None:
        say({"at": os.lseek(blob, 0, os.SEEK_CUR)})

    job = LayerJob(
        blob, Compression(request["compression"]), Digest(request["diff_id"]), _view(request)
    )
    done = unpack_layer(job, cell.TARGET, _meter(request, looked), ahead.of)
    with open(os.open(f"{cell.TARGET}/{trees.NAME}", _CREATE, 0o600), "wb") as file:
        used, inodes = trees.record(os.fsencode(_TREE), file, done.made)
    return {"bytes": used, "inodes": inodes, "skipped": done.skipped}


def copy(request: Request, _none: int, say: Say) -> Result:
    """Copy what the layers show together into the target."""
    view = _view(request)
    if view is None:
        raise ValueError("a copy of no layers")
    Path(_TREE).mkdir(0o755)
    target = os.open(_TREE, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(target, 0o755)
        copy_merged(view, target, _meter(request, lambda: say({"at": 0})))
    finally:
        os.close(target)
    return {}


def check(request: Request, record: int, say: Say) -> Result:
    """Compare a layer with the record of its tree."""
    found: list[str] = []
    count = 0

    def differs(path: bytes, what: str) -> None:
        nonlocal count
        count += 1
        if len(found) < MAX_FINDINGS:
            found.append(f"{path[:200].decode(errors='backslashreplace')!a}: {what}")
            say({"at": 0})

    with open(record, "rb", closefd=False) as file:
        trees.check(os.fsencode(cell.lower(0)), file, differs, deep=bool(request["deep"]))
    return {"count": count, "findings": found}


KINDS: Final[Mapping[str, Callable[[], Work]]] = {
    "unpack": unpacking,
    "copy": lambda: copy,
    "check": lambda: check,
}
"""Kind of job → what returns its function; it may begin threads, the function itself cannot."""
READS: Final = frozenset({"unpack", "check"})
"""Kinds whose first descriptor is a file to be read."""
WRITES: Final = frozenset({"unpack", "copy"})
"""Kinds whose next descriptor is the mount of the target."""


def bounds_of(request: Request) -> cell.Bounds:
    """Return the limits of a job's process.

    The bounds follow from what the store allows: names and checksums are kept in memory, and a core that
    makes less than 500 names or unpacks less than 5 MB in a second is given up.
    """
    limits = _limits(request)
    writing = cell.HIDER if request["lowers"] else cell.WRITER
    return cell.Bounds(
        memory=(1 << 30) + limits.layer_inodes * 1024,
        seconds=60 + limits.layer_inodes // 500 + limits.layer_bytes // 5_000_000,
        file_bytes=max(limits.file_bytes, 1 << 20),
        capabilities=cell.READER if request["kind"] == "check" else writing,
    )


def _meter(request: Request, looked: Callable[[], None]) -> Meter:
    return Meter(cell.TARGET, _limits(request), looked, shown=request["place"])


def _limits(request: Request) -> Limits:
    given = dict(request["limits"])
    return Limits(**given | {"devices": DevicePolicy(given["devices"])})


def _view(request: Request) -> MergedView | None:
    lowers = [os.fsencode(cell.lower(number)) for number in range(request["lowers"])]
    return MergedView(lowers) if lowers else None
