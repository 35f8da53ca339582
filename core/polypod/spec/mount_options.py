"""Mount options of runtime-spec as what the kernel's new mount API takes.

Spec:
    runtime-spec config.md, "Linux mount options"; man mount_setattr(2), fsmount(2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from polypod.plugin.errors import InvalidArgument

# linux/mount.h
RDONLY: Final = 0x1
NOSUID: Final = 0x2
NODEV: Final = 0x4
NOEXEC: Final = 0x8
ATIME_MASK: Final = 0x70
NOATIME: Final = 0x10
STRICTATIME: Final = 0x20
NODIRATIME: Final = 0x80
NOSYMFOLLOW: Final = 0x200000

MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20
_MS_UNBINDABLE: Final = 1 << 17

# Option → (bits to set, bits to clear).
_ATTRIBUTES: Final[dict[str, tuple[int, int]]] = {
    "ro": (RDONLY, 0),
    "rw": (0, RDONLY),
    "nosuid": (NOSUID, 0),
    "suid": (0, NOSUID),
    "nodev": (NODEV, 0),
    "dev": (0, NODEV),
    "noexec": (NOEXEC, 0),
    "exec": (0, NOEXEC),
    "nodiratime": (NODIRATIME, 0),
    "diratime": (0, NODIRATIME),
    "nosymfollow": (NOSYMFOLLOW, 0),
    "symfollow": (0, NOSYMFOLLOW),
    "relatime": (0, ATIME_MASK),
    "norelatime": (0, ATIME_MASK),
    "noatime": (NOATIME, ATIME_MASK),
    "atime": (0, ATIME_MASK),
    "strictatime": (STRICTATIME, ATIME_MASK),
    "nostrictatime": (0, ATIME_MASK),
}
_PROPAGATION: Final = {
    "private": MS_PRIVATE,
    "slave": MS_SLAVE,
    "shared": MS_SHARED,
    "unbindable": _MS_UNBINDABLE,
}
_MEANINGLESS: Final = frozenset(
    ["defaults", "async", "sync", "dirsync", "mand", "nomand", "silent", "loud", "iversion"]
)
"""Options of a super block that a bind or a kernel file system has no use for."""
_BINDS: Final = frozenset(["bind", "rbind"])


@dataclass(frozen=True, slots=True)
class MountOptions:
    """One mount's options, sorted by what becomes of them."""

    set_: int = 0
    """``MOUNT_ATTR_…`` of the mount itself."""
    clear: int = 0
    recursive_set: int = 0
    """``MOUNT_ATTR_…`` of the mount and all below it (``rro`` …)."""
    recursive_clear: int = 0
    propagation: int = 0
    """``MS_PRIVATE`` …; 0 leaves it."""
    propagation_recursive: bool = False
    bind: bool = False
    recursive: bool = False
    """``rbind``: what is mounted below the source comes along."""
    data: tuple[tuple[str, str | None], ...] = ()
    """What the file system itself is told: (key, value or None)."""


def parse_mount_options(options: tuple[str, ...], where: str) -> MountOptions:
    """Sort a mount's options.

    Args:
        options: as in ``mounts[].options``; later ones win.
        where: the destination, for errors.

    Raises:
        InvalidArgument: an option that this runtime does not have.
    """
    set_ = clear = deep_set = deep_clear = propagation = 0
    deep_propagation = False
    data: list[tuple[str, str | None]] = []
    for option in options:
        name = option.removeprefix("r") if option not in _ATTRIBUTES else option
        if option in _ATTRIBUTES:
            bits, without = _ATTRIBUTES[option]
            set_, clear = set_ & ~without | bits, clear & ~(bits & ~without) | without
        elif option in _PROPAGATION or (option[:1] == "r" and name in _PROPAGATION):
            propagation, deep_propagation = _PROPAGATION[name], option not in _PROPAGATION
        elif option[:1] == "r" and name in _ATTRIBUTES:
            bits, without = _ATTRIBUTES[name]
            deep_set = deep_set & ~without | bits
            deep_clear = deep_clear & ~(bits & ~without) | without
        elif option not in _BINDS and option not in _MEANINGLESS:
            data.append(_data(option, where))
    return MountOptions(
        set_,
        clear,
        deep_set,
        deep_clear,
        propagation,
        deep_propagation,
        bind=bool(_BINDS.intersection(options)),
        recursive="rbind" in options,
        data=tuple(data),
    )


def parse_propagation(text: str) -> int:
    """Return ``MS_…`` of ``linux.rootfsPropagation``; 0 for ``""``."""
    if not text:
        return 0
    found = _PROPAGATION.get(text) or _PROPAGATION.get(text.removeprefix("r"))
    if found is None:
        raise InvalidArgument(f"linux.rootfsPropagation {text!r}: use private, slave or shared")
    return found


def _data(option: str, where: str) -> tuple[str, str | None]:
    key, equals, value = option.partition("=")
    if not key or "\0" in option:
        raise InvalidArgument(f"mount {where}: option {option!r} is malformed")
    if key in ("idmap", "ridmap", "tmpcopyup"):
        raise InvalidArgument(f"mount {where}: option {option!r} is not supported by this version")
    return key, value if equals else None
