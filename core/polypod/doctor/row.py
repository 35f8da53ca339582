"""One line of the report."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """What a probe found."""

    OK = "ok"
    LIMITED = "limited"
    """Pods run; something that a request may ask for does not work."""
    ABSENT = "absent"
    """Not needed by pods that are namespaces."""
    MISSING = "missing"
    """Without it no real pod runs."""


@dataclass(frozen=True, slots=True)
class Row:
    """What was looked at, what was found, and what to do."""

    what: str
    state: State
    text: str = ""
    """The fact where it is good, the remedy where it is not."""
