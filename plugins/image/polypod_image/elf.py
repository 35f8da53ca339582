"""A small reader of ELF files: interpreter, needed libraries, search paths. The file is never executed.

Spec:
    System V ABI, "Object Files" and "Dynamic Linking"; man elf(5), ld.so(8).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from polypod.plugin.errors import InvalidArgument

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 0, 1, 5, 15, 29
_MAX_HEADERS: Final = 1000
_MAX_DYNAMIC: Final = 10_000
_MAX_TEXT: Final = 4096


@dataclass(frozen=True, slots=True)
class Elf:
    """What of an ELF file decides which other files it needs."""

    machine: tuple[int, int, int]
    """Class, byte order, machine: a library must have the same."""
    interpreter: str
    needed: tuple[str, ...]
    rpath: tuple[str, ...]
    runpath: tuple[str, ...]


def is_elf(data: bytes) -> bool:
    """Return whether the bytes begin an ELF file."""
    return data[:4] == b"\x7fELF"


def parse_elf(data: bytes, what: str) -> Elf:
    """Read an ELF file.

    Raises:
        InvalidArgument: it is damaged; ``what`` names it.
    """
    try:
        return _parse(data)
    except (struct.error, IndexError, ValueError) as error:
        raise InvalidArgument(f"{what}: a damaged ELF file: {error}") from error


def _parse(data: bytes) -> Elf:
    wide, order = data[4] == 2, "<" if data[5] == 1 else ">"
    machine = struct.unpack_from(f"{order}H", data, 18)[0]
    segments = list(_segments(data, wide, order))
    interpreter = ""
    dynamic: list[tuple[int, int]] = []
    for kind, offset, _, size in segments:
        if kind == _PT_INTERP:
            interpreter = data[offset : offset + min(size, _MAX_TEXT)].partition(b"\0")[0].decode()
        elif kind == _PT_DYNAMIC:
            dynamic = list(_dynamic(data[offset : offset + size], wide, order))
    strings = next((value for tag, value in dynamic if tag == _DT_STRTAB), 0)
    base = _offset(segments, strings)

    def texts(wanted: int) -> tuple[str, ...]:
        return tuple(_text(data, base + value) for tag, value in dynamic if tag == wanted)

    return Elf(
        machine=(data[4], data[5], machine),
        interpreter=interpreter,
        needed=texts(_DT_NEEDED),
        rpath=_paths(texts(_DT_RPATH)),
        runpath=_paths(texts(_DT_RUNPATH)),
    )


def _segments(data: bytes, wide: bool, order: str) -> Iterator[tuple[int, int, int, int]]:
    """Yield type, offset in the file, address, size in the file."""
    if wide:
        table, size, count = (*struct.unpack_from(f"{order}Q", data, 32), *_at(data, order, 54))
    else:
        table, size, count = (*struct.unpack_from(f"{order}I", data, 28), *_at(data, order, 42))
    if count > _MAX_HEADERS:
        raise ValueError(f"{count} program headers")
    for index in range(count):
        at = table + index * size
        if wide:
            kind, _, offset, address, _, length = struct.unpack_from(f"{order}IIQQQQ", data, at)
        else:
            kind, offset, address, _, length = struct.unpack_from(f"{order}IIIII", data, at)
        yield kind, offset, address, length


def _at(data: bytes, order: str, at: int) -> tuple[int, int]:
    size, count = struct.unpack_from(f"{order}HH", data, at)
    return size, count


def _dynamic(data: bytes, wide: bool, order: str) -> Iterator[tuple[int, int]]:
    form = struct.Struct(f"{order}QQ" if wide else f"{order}II")
    for index in range(min(len(data) // form.size, _MAX_DYNAMIC)):
        tag, value = form.unpack_from(data, index * form.size)
        if tag == _DT_NULL:
            return
        yield tag, value


def _offset(segments: list[tuple[int, int, int, int]], address: int) -> int:
    for kind, offset, start, size in segments:
        if kind == _PT_LOAD and start <= address < start + size:
            return address - start + offset
    return address


def _text(data: bytes, at: int) -> str:
    end = data.index(b"\0", at, at + _MAX_TEXT)
    return data[at:end].decode()


def _paths(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(path for text in texts for path in text.split(":") if path)
