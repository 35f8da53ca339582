"""``[handlers.NAME.options]`` of type ``oci``: ``path``, ``root``, ``arguments``, ``restore``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from polypod.plugin import InvalidArgument, RuntimeContext, Unsupported


@dataclass(frozen=True, slots=True)
class Options:
    """What a handler's section says."""

    path: str
    """Absolute path of the binary."""
    root: Path
    """Where the runtime keeps its own state (``--root``)."""
    arguments: tuple[str, ...] = ()
    """Further global arguments, before the command: ``--systemd-cgroup`` and the like."""

    restore: bool = False
    """Whether checkpoints may be restored: they say with which credentials a program goes on."""

    @property
    def name(self) -> str:
        """Return what the runtime is called in errors."""
        return os.path.basename(self.path)


def read_options(context: RuntimeContext) -> Options:
    """Check a handler's options.

    Raises:
        InvalidArgument: one is unknown, missing, or of the wrong type.
        Unsupported: the binary is not there.
    """
    where, given = f"handlers.{context.handler}.options", context.options
    unknown = sorted(given.keys() - {"path", "root", "arguments", "restore"})
    if unknown:
        raise InvalidArgument(
            f"{where}: {unknown} are unknown; path, root, arguments and restore exist"
        )
    restore = given.get("restore", False)
    if not isinstance(restore, bool):
        raise InvalidArgument(f"{where}.restore: must be true or false")
    return Options(
        _binary(where, given),
        Path(_text(where, given, "root") or context.state / "runtime"),
        _arguments(where, given.get("arguments", [])),
        restore,
    )


def _binary(where: str, given: Mapping[str, object]) -> str:
    name = _text(where, given, "path")
    if not name:
        raise InvalidArgument(f"{where}.path: say which runtime, such as '/usr/bin/runc'")
    found = shutil.which(name)
    if found is None:
        raise Unsupported(f"{where}.path: {name} is not installed, or cannot be executed")
    return os.path.abspath(found)


def _text(where: str, given: Mapping[str, object], key: str) -> str:
    value = given.get(key, "")
    if not isinstance(value, str):
        raise InvalidArgument(f"{where}.{key}: must be a string")
    if key == "root" and value and not value.startswith("/"):
        raise InvalidArgument(f"{where}.{key}: {value!r} is no absolute path")
    return value


def _arguments(where: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InvalidArgument(f"{where}.arguments: must be a list of strings")
    return tuple(value)
