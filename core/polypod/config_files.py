"""The files of a configuration: the main one, then the drop-ins beside it, in the order of their names.

``/etc/polypod/config.toml`` has its drop-ins in ``/etc/polypod/config.d/*.toml``. A later file wins key by
key: tables are merged, everything else (lists too) is replaced.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polypod.plugin.errors import InvalidArgument

Signature = tuple[tuple[str, int, int, int], ...]


def drop_ins(path: Path) -> Path:
    """Return the directory of a main file's drop-ins; it need not exist."""
    return path.with_suffix(".d") if path.suffix == ".toml" else path.with_name(f"{path.name}.d")


def present(path: Path) -> bool:
    """Tell whether there is anything to read for a main file: itself, or a drop-in."""
    return path.exists() or bool(_found(drop_ins(path)))


def files(path: Path) -> list[Path]:
    """Return what is read, in order; the main file may be absent if there are drop-ins.

    Raises:
        InvalidArgument: the directory of drop-ins cannot be read.
    """
    found = _found(drop_ins(path))
    return [path, *found] if path.exists() or not found else found


def read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the merged tables, and key → the file that its value is from.

    Raises:
        InvalidArgument: a file cannot be read or is no TOML; the text names it.
    """
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for file in files(path):
        part = _parsed(file)
        _merge(tree, part, file, "")
        _note_origins(part, "", str(file), origins)
    return tree, origins


def signature(path: Path) -> Signature:
    """Return what changes when a file is edited, replaced, added or removed: for whoever watches."""
    seen = []
    try:
        wanted = files(path)
    except InvalidArgument:
        return ()
    for file in wanted:
        try:
            facts = file.stat()
        except OSError:
            seen.append((str(file), 0, 0, 0))
        else:
            seen.append((str(file), facts.st_ino, facts.st_mtime_ns, facts.st_size))
    return tuple(seen)


def _found(directory: Path) -> list[Path]:
    try:
        # Editors' backups and a package manager's leftovers end otherwise; hidden files are half written.
        names = [each for each in directory.iterdir() if each.suffix == ".toml"]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        msg = f"configuration {directory}: {error.strerror}"
        raise InvalidArgument(msg) from error
    return sorted(each for each in names if not each.name.startswith("."))


def _parsed(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        msg = f"configuration {file}: {error.strerror}"
        raise InvalidArgument(msg) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"configuration {file}: {error}"
        raise InvalidArgument(msg) from error


def _merge(tree: dict[str, Any], part: Mapping[str, Any], file: Path, prefix: str) -> None:
    for key, value in part.items():
        name = f"{prefix}{key}"
        before = tree.get(key)
        if key in tree and isinstance(before, dict) is not isinstance(value, dict):
            msg = f"configuration {file}: {name} is a table in one file and a value in another"
            raise InvalidArgument(msg)
        if isinstance(before, dict):
            _merge(before, value, file, f"{name}.")
        else:
            tree[key] = value


def _note_origins(tree: object, prefix: str, origin: str, origins: dict[str, str]) -> None:
    if not isinstance(tree, dict):
        origins[prefix] = origin
        return
    for key, value in tree.items():
        _note_origins(value, f"{prefix}.{key}" if prefix else key, origin, origins)
