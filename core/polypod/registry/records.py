"""What the registry knows of each plugin."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

BREAK_AFTER = 3
"""So many failures in a row, and the choose, adjust and observe hooks of a plugin are not called again."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One thing that a plugin offers."""

    kind: str
    """``runtime type``, ``image store``, ``network``, ``observer`` or ``command``."""
    name: str
    summary: str
    unusable: str = ""


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One plugin, for people."""

    name: str
    distribution: str
    """The distribution that it comes from; ``""`` if it was handed over as an object."""
    version: str
    state: str
    """``loaded``, ``disabled``, ``failed`` or ``broken`` (its hooks failed too often)."""
    reason: str = ""
    """Why it is not ``loaded``."""
    hooks: tuple[str, ...] = ()
    offers: tuple[Offer, ...] = ()


@dataclass(slots=True)
class Plugin:
    """One plugin, for the registry."""

    name: str
    distribution: str = ""
    version: str = ""
    object: Any = None
    required: bool = False
    state: str = "loaded"
    reason: str = ""
    hooks: tuple[str, ...] = ()
    offers: list[Offer] = field(default_factory=list)
    failures: int = 0
    """In a row."""

    def fail(self, reason: str) -> None:
        """Note that it cannot be used."""
        self.state, self.reason, self.object = "failed", reason, None
        self.hooks, self.offers = (), []

    def count(self, fault: str) -> bool:
        """Note a failed hook call; True if that was one too many."""
        self.failures += 1
        if self.failures < BREAK_AFTER:
            return False
        self.state, self.reason = "broken", f"{self.failures} failures in a row, the last: {fault}"
        return True

    @property
    def info(self) -> PluginInfo:
        """What is shown of it."""
        return PluginInfo(
            self.name,
            self.distribution,
            self.version,
            self.state,
            self.reason,
            self.hooks,
            tuple(self.offers),
        )
