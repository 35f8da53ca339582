"""``[handlers.NAME.options]`` of the type ``vm``: read, checked, with the nearest name for a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from polypod.plugin import InvalidArgument

_ACCELERATORS = ("auto", "kvm", "tcg")
_MEMORY_MIB = (160, 1 << 20)
_VCPUS = (1, 255)
_BOOT_S = (1, 3600)


@dataclass(frozen=True, slots=True)
class VmOptions:
    """What a handler may set."""

    uri: str = ""
    """A libvirt that runs already, such as ``qemu:///system``; ``""`` = one of our own."""
    accel: str = "auto"
    """``auto`` boots a guest to find out whether KVM really works here; ``kvm`` or ``tcg`` decides it."""
    memory_mib: int = 512
    """Memory of a VM whose pod has no limit; less than 160 does not boot."""
    overhead_mib: int = 192
    """What the guest itself takes, added to a pod's memory limit."""
    vcpus: int = 1
    """Processors of a VM whose pod has no limit."""
    guest: Path | None = None
    """Directory of guests made by ``polypod vm build-guest``; None = the handler's own, built at need."""
    boot_s: int = 60
    """How long a VM may take until it answers, in seconds."""


def parse(handler: str, given: Mapping[str, object]) -> VmOptions:
    """Return the options of a handler.

    Raises:
        InvalidArgument: an unknown name, or a value that cannot be.
    """
    where = f"handlers.{handler}.options"
    names = {item.name for item in fields(VmOptions)}
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = (
                f"; did you mean {near[0]}?" if near else f"; known are {', '.join(sorted(names))}"
            )
            raise InvalidArgument(f"{where}.{name}: unknown{hint}")
    guest = _text(where, given, "guest", "")
    found = VmOptions(
        uri=_text(where, given, "uri", ""),
        accel=_text(where, given, "accel", "auto"),
        memory_mib=_number(where, given, "memory_mib", 512, _MEMORY_MIB),
        overhead_mib=_number(where, given, "overhead_mib", 192, _MEMORY_MIB),
        vcpus=_number(where, given, "vcpus", 1, _VCPUS),
        guest=Path(guest) if guest else None,
        boot_s=_number(where, given, "boot_s", 60, _BOOT_S),
    )
    if found.accel not in _ACCELERATORS:
        raise InvalidArgument(f"{where}.accel {found.accel!r}: one of {', '.join(_ACCELERATORS)}")
    if found.guest is not None and not found.guest.is_absolute():
        raise InvalidArgument(f"{where}.guest {guest!r}: must be an absolute path")
    return found


def _text(where: str, given: Mapping[str, object], name: str, default: str) -> str:
    value = given.get(name, default)
    if not isinstance(value, str):
        raise InvalidArgument(f"{where}.{name}: a text was expected, not {value!r}")
    return value


def _number(
    where: str, given: Mapping[str, object], name: str, default: int, limits: tuple[int, int]
) -> int:
    value = given.get(name, default)
    low, high = limits
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidArgument(
            f"{where}.{name}: a number of {low} to {high} was expected, not {value!r}"
        )
    return value
