"""What a runtime can do: read from its ``features`` where it has that command, else what 1.0 obliges it to.

Spec:
    runtime-spec features.md, features-linux.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from polypod.plugin import Feature

OLDEST_VERSION: Final = "1.0.0"
"""Written into config.json where a runtime does not say what it accepts: all accept this one."""

WIDEST: Final = frozenset(
    [
        Feature.HOST_NETWORK,
        Feature.HOST_PID,
        Feature.HOST_IPC,
        Feature.SHARED_PID,
        Feature.TARGET_PID,
        Feature.PRIVILEGED,
        Feature.DEVICES,
        Feature.HOST_PATH_MOUNTS,
        Feature.BIDIRECTIONAL_MOUNTS,
        Feature.RECURSIVE_READ_ONLY,
        Feature.SECCOMP,
        Feature.SYSCTLS,
        Feature.RESOURCES,
        Feature.TTY,
    ]
)
"""What a handler of this type may have; `Facts.features` says what its binary has."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a binary says of itself."""

    version: str = OLDEST_VERSION
    """The lowest ``ociVersion`` that it accepts."""
    features: frozenset[Feature] = WIDEST - {Feature.RECURSIVE_READ_ONLY}
    """Without a ``features`` command: what runtime-spec 1.0 has."""


def read_features(text: bytes) -> Facts:
    """Read the output of ``RUNTIME features``.

    Raises:
        ValueError: it is not the document that the specification describes.
    """
    document = _table(json.loads(text))
    linux = _table(document.get("linux", {}))
    version = document.get("ociVersionMin", OLDEST_VERSION)
    lacks = {
        Feature.RECURSIVE_READ_ONLY: "rro" not in _names(document.get("mountOptions", [])),
        Feature.BIDIRECTIONAL_MOUNTS: "rshared" not in _names(document.get("mountOptions", [])),
        Feature.SECCOMP: not _table(linux.get("seccomp", {})).get("enabled"),
        Feature.SHARED_PID: "pid" not in _names(linux.get("namespaces", [])),
        Feature.TARGET_PID: "pid" not in _names(linux.get("namespaces", [])),
    }
    missing = {feature for feature, lacking in lacks.items() if lacking}
    return Facts(version if isinstance(version, str) else OLDEST_VERSION, WIDEST - missing)


def _table(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        text = f"an object was expected, not {type(value).__name__}"
        raise ValueError(text)
    return value


def _names(value: object) -> frozenset[str]:
    return frozenset(map(str, value)) if isinstance(value, list) else frozenset()
