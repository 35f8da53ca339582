"""``server.root`` and ``server.state``: made, locked, and the notes that ``polypod down`` needs."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from polypod.config import Config, from_tree
from polypod.plugin.errors import FailedPrecondition, InvalidArgument

_LOCK = "server.lock"
_NOTE = "server.json"


@dataclass(frozen=True, slots=True)
class Places:
    """The directories of one server. All below them are ours, with mode 0700."""

    root: Path
    state: Path

    def own(self, kind: str, name: str) -> tuple[Path, Path]:
        """Return a part's own directories below root and state, made if missing.

        Raises:
            InvalidArgument: the name is no name of a directory.
        """
        if not name or "/" in name or name in {".", ".."}:
            raise InvalidArgument(f"{kind} {name!r}: a name may not contain '/' and not be empty")
        found = (self.root / kind / name, self.state / kind / name)
        for path in found:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return found


def make(root: Path, state: Path) -> Places:
    """Make the two directories.

    Raises:
        InvalidArgument: a path is relative.
        FailedPrecondition: a directory cannot be made or belongs to somebody else.
    """
    for key, path in (("server.root", root), ("server.state", state)):
        if not path.is_absolute():
            raise InvalidArgument(f"{key} is {str(path)!r}: give an absolute path")
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            facts = path.stat()
            if facts.st_uid != os.geteuid():
                raise FailedPrecondition(
                    f"{key} {path} belongs to uid {facts.st_uid}, this server runs as "
                    f"{os.geteuid()}: give it a directory of its own"
                )
            path.chmod(0o700)
        except OSError as error:
            raise FailedPrecondition(f"{key} {path}: {error.strerror}") from error
    return Places(root, state)


@contextlib.contextmanager
def claim(places: Places) -> Iterator[None]:
    """Hold both directories for this process; nobody else may serve from them meanwhile.

    Raises:
        FailedPrecondition: another server has one; the text names its pid.
    """
    with contextlib.ExitStack() as stack:
        for path in sorted({places.root, places.state}):
            stack.enter_context(_locked(path))
        yield


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    fd = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            raise FailedPrecondition(
                f"another server (pid {pid}) uses {directory}: stop it with SIGTERM, "
                "or give this one another --root and --state"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        # The file stays: removing it would let two servers lock two files of one name.
        os.close(fd)


def holder(root: Path) -> int | None:
    """Return the pid of the server that holds a root, or None."""
    try:
        fd = os.open(root / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.pread(fd, 32, 0) or 0) or None
    finally:
        os.close(fd)
    return None


def note(places: Places, config: Config) -> None:
    """Write down what is in force, so that ``down`` finds the same parts without the file."""
    tree = dataclasses.asdict(config)
    origins = tree.pop("origins")
    fresh = places.root / f".{_NOTE}"
    fresh.write_text(json.dumps({"config": tree, "origins": origins}, indent=1))
    fresh.chmod(0o600)
    fresh.replace(places.root / _NOTE)


def noted(root: Path) -> Config | None:
    """Return the configuration with which the last server of a root ran; None if there was none.

    Raises:
        InvalidArgument: the note is damaged.
    """
    try:
        found = json.loads((root / _NOTE).read_text())
        return from_tree(found["config"], found["origins"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidArgument(f"{root / _NOTE} is damaged: {error!r}") from error
