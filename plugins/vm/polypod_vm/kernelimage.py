"""Debian's kernel: found or unpacked from its package; its modules in the order in which they load.

Spec:
    kernel Documentation/arch/x86/boot.rst; man modules.dep(5); LZ4 frame (legacy) and block format.
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polypod.plugin import BackendError

_PAYLOAD = struct.Struct("<II")
_PAYLOAD_AT = 0x248
_SECTORS_AT = 0x1F1
_LZ4_LEGACY = b"\x02\x21\x4c\x18"
_XZ = b"\xfd7zXZ\x00"
_ELF = b"\x7fELF"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel with its modules."""

    release: str
    image: Path
    modules: Path
    """The directory that ``modules.dep`` lies in."""


def find(root: Path = Path("/")) -> Kernel | None:
    """Return the newest installed kernel made for virtual machines; None if there is none.

    Args:
        root: where the packages are unpacked.
    """
    found = [
        Kernel(image.name.removeprefix("vmlinuz-"), image, modules)
        for image in (root / "boot").glob("vmlinuz-*-cloud-*")
        for modules in (root / "lib/modules" / image.name.removeprefix("vmlinuz-"),)
        if (modules / "modules.dep").is_file() or (modules / "kernel").is_dir()
    ]
    return max(found, key=lambda each: _version(each.release), default=None)


def _version(release: str) -> list[int]:
    digits = "".join(char if char.isdigit() else " " for char in release)
    return [int(each) for each in digits.split()]


def load_order(dependencies: str, wanted: Sequence[str]) -> list[str]:
    """Return the paths of modules, each behind those that it needs.

    Args:
        dependencies: the text of ``modules.dep``.
        wanted: names of modules; one that is not there is built into the kernel.
    """
    needs: dict[str, list[str]] = {}
    paths: dict[str, str] = {}
    for line in dependencies.splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
        paths[Path(path).name.partition(".")[0].replace("-", "_")] = path
    order: list[str] = []

    def add(path: str) -> None:
        if path not in order:
            for needed in needs[path]:
                add(needed)
            order.append(path)

    for name in wanted:
        if name.replace("-", "_") in paths:
            add(paths[name.replace("-", "_")])
    return order


def module_content(path: Path) -> bytes:
    """Return a module as the kernel takes it."""
    raw = path.read_bytes()
    return lzma.decompress(raw) if path.suffix == ".xz" else raw


def uncompressed(image: bytes) -> bytes:
    """Return the ELF image inside a bzImage: it boots half a second faster than the packed one.

    Raises:
        BackendError: it is packed in a way that we cannot undo; the image itself boots, too.
    """
    offset, length = _PAYLOAD.unpack_from(image, _PAYLOAD_AT)
    start = (image[_SECTORS_AT] + 1) * 512 + offset
    payload = image[start : start + length]
    if payload.startswith(_LZ4_LEGACY):
        raw = _lz4_legacy(payload)
    elif payload.startswith(_XZ):
        raw = lzma.decompress(payload[:-4])
    else:
        raise BackendError(f"kernel payload {payload[:6].hex()}: neither LZ4 nor XZ")
    if not raw.startswith(_ELF):
        raise BackendError("the kernel's payload is no ELF image")
    return raw


def _lz4_legacy(payload: bytes) -> bytes:
    """Unpack blocks of at most 8 MiB; the kernel's build appends the size of the whole."""
    (size,) = struct.unpack_from("<I", payload, len(payload) - 4)
    pieces: list[bytes] = []
    position, done = len(_LZ4_LEGACY), 0
    while done < size:
        (length,) = struct.unpack_from("<I", payload, position)
        position += 4
        piece = lz4_block(payload[position : position + length])
        pieces.append(piece)
        position += length
        done += len(piece)
    return b"".join(pieces)


def lz4_block(data: bytes) -> bytes:
    """Unpack one LZ4 block."""
    out = bytearray()
    position, end = 0, len(data)
    while position < end:
        token = data[position]
        position += 1
        count = token >> 4
        if count == 15:
            while (more := data[position]) == 255:
                count += 255
                position += 1
            count += more
            position += 1
        out += data[position : position + count]
        position += count
        if position >= end:
            break
        distance = data[position] | data[position + 1] << 8
        position += 2
        count = token & 15
        if count == 15:
            while (more := data[position]) == 255:
                count += 255
                position += 1
            count += more
            position += 1
        count += 4
        start = len(out) - distance
        if distance >= count:
            out += out[start : start + count]
        else:
            piece = bytes(out[start:])
            out += (piece * (count // distance + 1))[:count]
    return bytes(out)
