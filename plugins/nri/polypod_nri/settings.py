"""The table ``[plugins.nri]``, checked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from polypod.plugin import InvalidArgument


@dataclass(frozen=True, slots=True)
class Settings:
    """What the configuration may say; times are in seconds."""

    enabled: bool = False
    """Whether NRI plugins are started and let in."""
    socket: str = "/var/run/nri/nri.sock"
    """Where plugins connect; empty lets none connect."""
    plugin_dir: str = "/opt/nri/plugins"
    """Programs named ``NN-NAME`` that are started with the server, in the order of their names."""
    config_dir: str = "/etc/nri/conf.d"
    """``NN-NAME.conf`` or ``NAME.conf``: what a plugin of ``plugin_dir`` is configured with."""
    registration_timeout_s: float = 5.0
    """For a new plugin to register."""
    request_timeout_s: float = 2.0
    """For one answer of a plugin; one that takes longer is closed."""
    required: tuple[str, ...] = ()
    """``NAME`` or ``NN-NAME``: without these no container is created."""


def parse(options: Mapping[str, object]) -> Settings:
    """Return the settings.

    Raises:
        InvalidArgument: a key is unknown or its value is none that it can have; the text names it.
    """
    known = {item.name: getattr(Settings(), item.name) for item in fields(Settings)}
    checked: dict[str, Any] = {}
    for key, value in options.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
            raise InvalidArgument(f"plugins.nri.{key}: unknown key; {hint}")
        checked[key] = _typed(key, value, known[key])
    settings = Settings(**checked)
    for key in ("registration_timeout_s", "request_timeout_s"):
        if getattr(settings, key) <= 0:
            raise InvalidArgument(f"plugins.nri.{key}: {getattr(settings, key)!r} is no time limit")
    return settings


def _typed(key: str, value: object, default: object) -> object:
    match default:
        case bool() if isinstance(value, bool):
            return value
        case float() if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        case str() if isinstance(value, str):
            return value
        case tuple() if isinstance(value, (list, tuple)) and all(
            isinstance(each, str) for each in value
        ):
            return tuple(value)
    kind = "list of strings" if isinstance(default, tuple) else type(default).__name__
    raise InvalidArgument(f"plugins.nri.{key}: {value!r} is not a {kind}")
