"""The ``[images]`` table of the configuration, as far as the content store reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from polypod.plugin.errors import InvalidArgument
from polypod_image.registry import settings
from polypod_image.registry.settings import PullOptions


class DevicePolicy(StrEnum):
    """What becomes of device nodes in a layer."""

    SKIP = "skip"
    KEEP = "keep"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one layer may cost; reliability I4."""

    layer_bytes: int = 64 << 30
    """Decompressed, headers included."""
    layer_inodes: int = 2_000_000
    file_bytes: int = 32 << 30
    free_bytes: int = 256 << 20
    """What must stay free on the store's file system."""
    devices: DevicePolicy = DevicePolicy.SKIP


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How the content store is set up."""

    oci_dirs: tuple[Path, ...] = (Path("/"),)
    """Directories below which ``oci:PATH`` references may lead."""
    limits: Limits = field(default_factory=Limits)
    overlay_options: tuple[str, ...] = ("volatile",)
    usage_interval_s: float = 10.0
    """Seconds between two samples of the writable layers; 0 takes none."""
    unpackers: int = 0
    """Layers that are unpacked at once; 0 means one for each processor, and at least two."""
    pinned: tuple[str, ...] = ()
    """References of images that are reported as pinned: a kubelet leaves them alone."""
    pulls: PullOptions = field(default_factory=PullOptions)


_MAX_UNPACKERS: Final = 64
_NUMBERS: Final = {
    "max_layer_bytes": "layer_bytes",
    "max_layer_inodes": "layer_inodes",
    "max_file_bytes": "file_bytes",
    "min_free_bytes": "free_bytes",
}


def parse(options: Mapping[str, object]) -> StoreOptions:
    """Check the table.

    Args:
        options: ``oci_dirs`` (list of absolute directories), ``max_layer_bytes``, ``max_layer_inodes``,
            ``max_file_bytes``, ``min_free_bytes``, ``devices`` (``skip``, ``keep`` or ``refuse`` device
            nodes in layers), ``overlay_options`` (list), ``usage_interval_s``, ``unpackers``
            (0 to 64), ``pinned`` (list of references), and those of `registry.settings`.

    Raises:
        InvalidArgument: naming the key and the value.
    """
    known = {
        *_NUMBERS,
        *settings.KEYS,
        "oci_dirs",
        "devices",
        "overlay_options",
        "usage_interval_s",
        "unpackers",
        "pinned",
    }
    unknown = sorted(
        key for key, value in options.items() if key not in known and not isinstance(value, Mapping)
    )
    if unknown:
        raise InvalidArgument(
            f"images.{unknown[0]}: unknown key; the content store knows {sorted(known)}"
        )
    numbers = {name: _number(options, key) for key, name in _NUMBERS.items() if key in options}
    return StoreOptions(
        oci_dirs=_directories(options),
        limits=Limits(**numbers, devices=_devices(options)),
        overlay_options=_texts(options, "overlay_options", ("volatile",)),
        usage_interval_s=_seconds(options, "usage_interval_s", 10.0),
        pinned=_pinned(options),
        unpackers=_unpackers(options),
        pulls=settings.parse(options),
    )


def changed_keys(before: StoreOptions, after: StoreOptions) -> list[str]:
    """Return the keys of a changed table that the store reads at its opening alone."""
    pairs = {
        key: (getattr(before.limits, name), getattr(after.limits, name))
        for key, name in _NUMBERS.items()
    }
    pairs["devices"] = (before.limits.devices, after.limits.devices)
    for key in ("usage_interval_s", "unpackers"):
        pairs[key] = (getattr(before, key), getattr(after, key))
    return sorted(key for key, (old, new) in pairs.items() if old != new)


def _number(options: Mapping[str, object], key: str) -> int:
    value = options[key]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63:
        return value
    raise InvalidArgument(f"images.{key}: {value!r} is not a whole number of at least 0")


def _seconds(options: Mapping[str, object], key: str, default: float) -> float:
    value = options.get(key, default)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e6:
        return float(value)
    raise InvalidArgument(f"images.{key}: {value!r} is no number of seconds")


def _texts(options: Mapping[str, object], key: str, default: tuple[str, ...]) -> tuple[str, ...]:
    value = options.get(key, default)
    if isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
        return tuple(map(str, value))
    raise InvalidArgument(f"images.{key}: {value!r} is not a list of strings")


def _directories(options: Mapping[str, object]) -> tuple[Path, ...]:
    found = _texts(options, "oci_dirs", ("/",))
    for each in found:
        if not each.startswith("/") or "\0" in each:
            raise InvalidArgument(f"images.oci_dirs: {each!r} is not an absolute path")
    return tuple(map(Path, found))


def _unpackers(options: Mapping[str, object]) -> int:
    value = _number(options, "unpackers") if "unpackers" in options else 0
    if value <= _MAX_UNPACKERS:
        return value
    raise InvalidArgument(f"images.unpackers: {value} is more than {_MAX_UNPACKERS}")


def _pinned(options: Mapping[str, object]) -> tuple[str, ...]:
    from polypod_image.references import parse_reference  # more than the unpacker needs

    found = _texts(options, "pinned", ())
    for each in found:
        try:
            parse_reference(each)
        except InvalidArgument as error:
            raise InvalidArgument(f"images.pinned: {error}") from None
    return found


def _devices(options: Mapping[str, object]) -> DevicePolicy:
    value = options.get("devices", DevicePolicy.SKIP)
    try:
        return DevicePolicy(str(value))
    except ValueError:
        choices = ", ".join(DevicePolicy)
        raise InvalidArgument(f"images.devices: {value!r} is none of {choices}") from None
