"""The ``[network.cni]`` table of the configuration, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from polypod.plugin.errors import InvalidArgument

DEFAULT_CONF_DIR = "/etc/cni/net.d"
DEFAULT_BIN_DIRS = ("/opt/cni/bin",)
_KEYS = {"conf_dir", "bin_dirs", "timeout_s", "gc"}


@dataclass(frozen=True, slots=True)
class CniOptions:
    """Where configurations and plugins lie, and how long one may take."""

    conf_dir: Path = Path(DEFAULT_CONF_DIR)
    bin_dirs: tuple[Path, ...] = tuple(Path(each) for each in DEFAULT_BIN_DIRS)
    timeout_s: float = 30.0
    """For one execution of one plugin."""
    gc: bool = True
    """Ask plugins at start to give back what we know nothing of (networks of 1.1.0 and later)."""


def parse(options: Mapping[str, object]) -> CniOptions:
    """Check ``[network]``, of which ``cni`` is ours; what belongs to other types is left alone.

    Raises:
        InvalidArgument: naming the key and the value.
    """
    table = options.get("cni", {})
    if not isinstance(table, Mapping):
        raise InvalidArgument(f"network.cni: {table!r} is not a table")
    unknown = sorted(set(table) - _KEYS)
    if unknown:
        raise InvalidArgument(f"network.cni.{unknown[0]}: unknown key; there are {sorted(_KEYS)}")
    defaults = CniOptions()
    return CniOptions(
        conf_dir=_path("conf_dir", table.get("conf_dir", DEFAULT_CONF_DIR)),
        bin_dirs=_paths("bin_dirs", table.get("bin_dirs", list(DEFAULT_BIN_DIRS))),
        timeout_s=_seconds("timeout_s", table.get("timeout_s", defaults.timeout_s)),
        gc=_flag("gc", table.get("gc", defaults.gc)),
    )


def _path(key: str, value: object) -> Path:
    # A colon would split CNI_PATH in two.
    if isinstance(value, str) and value.startswith("/") and not set(value) & {":", "\0"}:
        return Path(value)
    raise InvalidArgument(f"network.cni.{key}: {value!r} is not an absolute path without ':'")


def _paths(key: str, value: object) -> tuple[Path, ...]:
    if not isinstance(value, (list, tuple)) or not value:
        raise InvalidArgument(f"network.cni.{key}: {value!r} is not a list of directories")
    return tuple(_path(key, each) for each in value)


def _seconds(key: str, value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 3600:
        return float(value)
    raise InvalidArgument(f"network.cni.{key}: {value!r} is not a number of seconds up to 3600")


def _flag(key: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise InvalidArgument(f"network.cni.{key}: {value!r} is neither true nor false")
