"""CRI's signal enum ↔ Linux' signal numbers: CRI numbers them by the alphabet, the kernel does not."""

from __future__ import annotations

import signal

from polypod.api.v1 import api_pb2 as pb
from polypod.plugin.errors import InvalidArgument

_PREFIX = "SIGNAL_"
_ALIASES = {"SIGCLD": "SIGCHLD", "SIGIOT": "SIGABRT", "SIGPOLL": "SIGIO"}
_RTMIN = int(signal.SIGRTMIN)
_RTMAX = int(signal.SIGRTMAX)


def _linux_number(name: str) -> int:
    """Return the kernel's number of a CRI name without its prefix."""
    if "PLUS" in name:
        return _RTMIN + int(name.partition("PLUS")[2])
    if "MINUS" in name:
        return _RTMAX - int(name.partition("MINUS")[2])
    return int(signal.Signals[_ALIASES.get(name, name)])


_TO_LINUX: dict[int, int] = {
    int(value): _linux_number(name.removeprefix(_PREFIX))
    for name, value in pb.Signal.items()
    if value
}
# The main name of a number comes last, so that it wins over its aliases.
_FROM_LINUX: dict[int, int] = {}
for _name, _value in pb.Signal.items():
    if _value and _name.removeprefix(_PREFIX) not in _ALIASES:
        _FROM_LINUX.setdefault(_TO_LINUX[int(_value)], int(_value))


def number(value: int, field: str) -> int:
    """Return the kernel's number of a CRI enum value; 0 stays 0 ("the runtime decides").

    Raises:
        InvalidArgument: CRI has no such value.
    """
    if not value:
        return 0
    if value not in _TO_LINUX:
        raise InvalidArgument(f"{field} is {value}: CRI knows no such signal")
    return _TO_LINUX[value]


def enum_value(linux_number: int) -> int:
    """Return CRI's value for a kernel number; 0 for a number that CRI has no name for."""
    return _FROM_LINUX.get(linux_number, 0)
