"""What of ``[images]`` is the registry client's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from polypod.plugin.errors import InvalidArgument

KEYS: Final = frozenset(
    {
        "hosts_dir",
        "pull_progress_timeout_s",
        "pull_parallel_layers",
        "pull_attempts",
        "token_realms",
    }
)
DEFAULT_HOSTS_DIR: Final = Path("/etc/polypod/hosts.d")


@dataclass(frozen=True, slots=True)
class PullOptions:
    """How images are pulled."""

    hosts_dir: Path = DEFAULT_HOSTS_DIR
    """A tree of ``HOST/hosts.toml``, read at each pull."""
    progress_timeout_s: float = 60.0
    """A connection that brings no byte for so long is given up."""
    parallel_layers: int = 3
    attempts: int = 3
    """Rounds over all endpoints before a request is given up."""
    realms: frozenset[str] = frozenset()
    """Hosts of token servers that may be asked although they are loopback or link-local."""


def parse(options: Mapping[str, object]) -> PullOptions:
    """Check our keys.

    Raises:
        InvalidArgument: naming the key and the value.
    """
    hosts_dir = options.get("hosts_dir", str(DEFAULT_HOSTS_DIR))
    if not isinstance(hosts_dir, str) or not hosts_dir.startswith("/") or "\0" in hosts_dir:
        raise InvalidArgument(f"images.hosts_dir: {hosts_dir!r} is not an absolute path")
    realms = options.get("token_realms", [])
    if not isinstance(realms, list) or not all(isinstance(each, str) for each in realms):
        raise InvalidArgument(f"images.token_realms: {realms!r} is not a list of host names")
    return PullOptions(
        hosts_dir=Path(hosts_dir),
        progress_timeout_s=_number(options, "pull_progress_timeout_s", 60.0, 0.1, 86_400),
        parallel_layers=int(_number(options, "pull_parallel_layers", 3, 1, 64)),
        attempts=int(_number(options, "pull_attempts", 3, 1, 20)),
        realms=frozenset(map(str.lower, realms)),
    )


def _number(
    options: Mapping[str, object], key: str, default: float, low: float, high: float
) -> float:
    value = options.get(key, default)
    if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
        return value
    raise InvalidArgument(f"images.{key}: {value!r} is not a number from {low:g} to {high:g}")
