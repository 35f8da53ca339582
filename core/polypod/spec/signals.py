"""Stop signals: names and numbers of Linux, as images and CRI give them."""

from __future__ import annotations

from signal import SIGTERM, Signals
from typing import Final

from polypod.plugin.errors import InvalidArgument

# The kernel's range, not glibc's, which keeps two of the real-time signals for itself.
_REALTIME_FIRST: Final = 34
_LAST: Final = 64
_ALIASES: Final = {"SIGCLD": 17, "SIGIOT": 6, "SIGPOLL": 29, "SIGSTKFLT": 16, "SIGUNUSED": 31}


def stop_signal(configured: int, image_signal: str) -> int:
    """Return the signal that asks a container to end.

    Args:
        configured: ``ContainerConfig.stop_signal``; 0 = not set.
        image_signal: ``StopSignal`` of the image's config; ``""`` = not set.

    Raises:
        InvalidArgument: the one that applies is no signal of Linux.

    Spec:
        kubernetes/cri-api api.proto, ContainerConfig.stop_signal; image-spec config.md, StopSignal.
    """
    if configured:
        return _checked(configured, str(configured), "stop_signal")
    if image_signal:
        return parse_signal(image_signal, "the image's StopSignal")
    return int(SIGTERM)


def parse_signal(text: str, field: str = "signal") -> int:
    """Return the number of ``SIGTERM``, ``term``, ``15``, ``SIGRTMIN+3`` or ``RTMAX-1``.

    Raises:
        InvalidArgument: it names none.
    """
    clean = text.strip().upper()
    if clean.isascii() and clean.isdigit():
        digits = clean.lstrip("0")
        return _checked(int(digits) if 1 <= len(digits) <= 2 else 0, text, field)
    name = clean if clean.startswith("SIG") else f"SIG{clean}"
    number = _ALIASES.get(name) or _realtime(name) or _named(name)
    return _checked(number, text, field)


def _named(name: str) -> int:
    member = Signals.__members__.get(name)
    return 0 if member is None else int(member)


def _realtime(name: str) -> int:
    for prefix, base, sign in (("SIGRTMIN", _REALTIME_FIRST, "+"), ("SIGRTMAX", _LAST, "-")):
        if name == prefix:
            return base
        offset = name.removeprefix(prefix + sign)
        if offset != name and len(offset) <= 2 and offset.isascii() and offset.isdigit():
            number = base + int(offset) if sign == "+" else base - int(offset)
            return number if _REALTIME_FIRST <= number <= _LAST else 0
    return 0


def _checked(number: int, text: str, field: str) -> int:
    if not 1 <= number <= _LAST:
        raise InvalidArgument(
            f"{field} {text[:40]!r}: not a signal of Linux; give a name such as SIGTERM or 1 to {_LAST}"
        )
    return number
