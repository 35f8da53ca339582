"""What a checkpoint is on disk: one archive per container, and for a pod a directory of them with a summary.

An archive is a tar of regular files and directories only::

    checkpoint.json     the summary: format, runtime type, container name, image id
    backend/…           what the backend wrote, as it likes
    changes.tar         the container's writable layer as an OCI layer, where the image store can tell it

It comes back from anywhere, so nothing in it is believed but these files: mounts, devices, annotations, log
paths and references come from the request that restores (reliability E20).
"""

from __future__ import annotations

import io
import json
import os
import secrets
import tarfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from polypod.plugin.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)

FORMAT: Final = "polypod.checkpoint/1"
SUMMARY: Final = "checkpoint.json"
CHANGES: Final = "changes.tar"
BACKEND: Final = "backend"
POD: Final = "pod.json"

_SUMMARY_BYTES: Final = 1 << 20
_MEMBERS: Final = 10_000
_DEPTH: Final = 16


@dataclass(frozen=True, slots=True)
class Summary:
    """What must fit before a container is restored."""

    name: str
    """The container's, as its metadata has it."""
    runtime_type: str
    image_id: str
    created_at_ns: int
    format: str = FORMAT


def check_location(location: str) -> Path:
    """Return where an archive shall lie.

    Raises:
        InvalidArgument: not an absolute path to a file.
        NotFound: its directory does not exist.
    """
    path = Path(location)
    if not path.is_absolute() or location.endswith("/") or "\0" in location or ".." in path.parts:
        raise InvalidArgument(f"location {location!r}: give an absolute path of a file")
    if not path.parent.is_dir():
        raise NotFound(f"location {location!r}: its directory does not exist")
    if path.exists() and not path.is_file():
        raise InvalidArgument(f"location {location!r} exists and is no regular file")
    return path


def check_output(output: str) -> Path:
    """Return the directory that a pod's checkpoint may fill.

    Raises:
        InvalidArgument: not an absolute path.
        NotFound: there is no such directory.
        AlreadyExists: there is something in it.
    """
    path = Path(output)
    if not path.is_absolute() or "\0" in output or ".." in path.parts:
        raise InvalidArgument(
            f"output_path {output!r}: give an absolute path of an empty directory"
        )
    if path.is_symlink() or not path.is_dir():
        raise NotFound(f"output_path {output!r} is no directory")
    if any(path.iterdir()):
        raise AlreadyExists(f"output_path {output!r} is not empty")
    return path


def pack(work: Path, summary: Summary, location: Path) -> None:
    """Write an archive of a work directory that holds ``backend/`` and perhaps ``changes.tar``; all or nothing."""
    fresh = location.with_name(f".{location.name}.{secrets.token_hex(4)}")
    try:
        with (
            os.fdopen(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            _add_bytes(archive, SUMMARY, json.dumps(asdict(summary), indent=1).encode())
            for path in sorted((work / BACKEND).rglob("*")):
                _add(archive, path, str(path.relative_to(work)))
            if (work / CHANGES).exists():
                _add(archive, work / CHANGES, CHANGES)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(location)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def write_pod(output: Path, names: Mapping[str, str]) -> None:
    """Write a pod's summary: container name → file in the directory."""
    text = json.dumps({"format": FORMAT, "containers": dict(names)}, indent=1)
    with os.fdopen(os.open(output / POD, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(text)


def read_pod(checkpoint: str) -> dict[str, Path]:
    """Return the archives of a pod's checkpoint by container name.

    Raises:
        InvalidArgument: not an absolute path, or a summary that is none or leads out of the directory.
        NotFound: no checkpoint there.
    """
    path = Path(checkpoint)
    if not path.is_absolute() or "\0" in checkpoint:
        raise InvalidArgument(
            f"checkpoint_path {checkpoint!r}: give an absolute path of a directory"
        )
    found = _json(_read(path / POD, f"checkpoint_path {checkpoint!r}"), path / POD)
    containers = found.get("containers")
    if found.get("format") != FORMAT or not isinstance(containers, dict):
        raise InvalidArgument(f"{path / POD} is no summary of a {FORMAT}")
    archives = {}
    for name, file in containers.items():
        if not isinstance(file, str) or PurePosixPath(file).name != file or file in {"", ".", ".."}:
            raise InvalidArgument(f"{path / POD}: container {name!r} has no plain file name")
        archives[str(name)] = path / file
    return archives


def unpack(archive: Path, target: Path) -> Summary:
    """Unpack an archive into a directory that is not there yet; on an error nothing of it stays, see caller.

    Raises:
        InvalidArgument: it is no archive of ours, or holds what none holds; the text names the member.
        NotFound: there is no such file.
    """
    try:
        with (
            os.fdopen(os.open(archive, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file,
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            target.mkdir(mode=0o700)
            (target / BACKEND).mkdir(mode=0o700)
            return _unpacked(tar, archive, target)
    except FileNotFoundError as error:
        raise NotFound(f"checkpoint {archive}: no such file") from error
    except tarfile.TarError as error:
        raise InvalidArgument(f"checkpoint {archive}: {error}") from error


def _unpacked(tar: tarfile.TarFile, archive: Path, target: Path) -> Summary:
    summary = None
    for number, member in enumerate(tar):
        where = f"checkpoint {archive}: member {member.name!r}"
        if number >= _MEMBERS:
            raise InvalidArgument(f"checkpoint {archive} has more than {_MEMBERS} members")
        place = target / _place(member, where)
        if member.isdir():
            place.mkdir(mode=0o700, exist_ok=True)
        elif member.name == SUMMARY:
            summary = _summary(tar, member, where)
        else:
            _extract(tar, member, place)
    if summary is None:
        raise InvalidArgument(f"checkpoint {archive} has no {SUMMARY}")
    return summary


def _place(member: tarfile.TarInfo, where: str) -> PurePosixPath:
    """Return where a member belongs, if it is one that `pack` writes."""
    if not (member.isreg() or member.isdir()):
        raise InvalidArgument(f"{where} is neither a regular file nor a directory")
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or len(path.parts) > _DEPTH or "\0" in member.name:
        raise InvalidArgument(f"{where} leads out of the archive")
    known = path.parts[:1] == (BACKEND,) or (member.isreg() and member.name in {SUMMARY, CHANGES})
    if not known:
        raise InvalidArgument(f"{where} is not part of a checkpoint")
    return path


def _summary(tar: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> Summary:
    if member.size > _SUMMARY_BYTES:
        raise InvalidArgument(f"{where} is too large")
    file = tar.extractfile(member)
    found = _json(file.read() if file else b"", where)
    try:
        summary = Summary(**found)
    except TypeError as error:
        raise InvalidArgument(f"{where}: {error}") from error
    texts = (summary.name, summary.runtime_type, summary.image_id, summary.format)
    if not all(isinstance(each, str) for each in texts):
        raise InvalidArgument(f"{where}: a text was expected")
    if summary.format != FORMAT:
        raise InvalidArgument(f"{where}: format {summary.format!r}, this server reads {FORMAT}")
    return summary


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, place: Path) -> None:
    source = tar.extractfile(member)
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW
    try:
        file = os.fdopen(os.open(place, flags, 0o600), "wb")
    except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
        raise InvalidArgument(f"checkpoint member {member.name!r}: {error.strerror}") from error
    with file:
        while source is not None and (data := source.read(1 << 20)):
            file.write(data)


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    """Add a regular file or a directory; a backend that left anything else has a fault."""
    if path.is_symlink() or not (path.is_file() or path.is_dir()):
        raise FailedPrecondition(f"the backend wrote {name!r}, which is neither file nor directory")
    info = archive.gettarinfo(path, name)
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mode = 0o700 if path.is_dir() else 0o600
    if path.is_dir():
        archive.addfile(info)
    else:
        with path.open("rb") as file:
            archive.addfile(info, file)


def _add_bytes(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o600
    archive.addfile(info, io.BytesIO(data))


def _read(path: Path, what: str) -> bytes:
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            data = file.read(_SUMMARY_BYTES + 1)
    except OSError as error:
        raise NotFound(f"{what}: {path.name}: {error.strerror}") from error
    if len(data) > _SUMMARY_BYTES:
        raise InvalidArgument(f"{what}: {path.name} is too large")
    return data


def _json(data: bytes, where: object) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise InvalidArgument(f"{where}: {error}") from error
    if not isinstance(found, dict):
        raise InvalidArgument(f"{where}: an object was expected")
    return found
