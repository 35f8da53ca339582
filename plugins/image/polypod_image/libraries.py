"""Where the libraries of this host lie: what the dynamic linker would find, found without running it.

Spec:
    man ld.so(8), "Dynamic linker" search order; glibc sysdeps/generic/dl-cache.h for ``/etc/ld.so.cache``.
"""

from __future__ import annotations

import os
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from polypod.plugin.errors import InvalidArgument, NotFound
from polypod_image.elf import Elf, is_elf, parse_elf

CACHE: Final = Path("/etc/ld.so.cache")
_CACHE_MAGIC: Final = b"glibc-ld.so.cache1.1"
_HEADER_BYTES: Final = 48
_ENTRY: Final = struct.Struct("=iIIIQ")
_DIRECTORIES: Final = ("/lib", "/usr/lib", "/lib64", "/usr/lib64", "/usr/local/lib")
_MAX_ENTRIES: Final = 100_000
_MAX_FILE: Final = 1 << 30


def read_elf(path: Path) -> Elf | None:
    """Return what an ELF file needs; None for another kind of file.

    Raises:
        InvalidArgument: damaged or gigantic.
    """
    with path.open("rb") as file:
        head = file.read(64)
        if not is_elf(head):
            return None
        if path.stat().st_size > _MAX_FILE:
            raise InvalidArgument(f"{path}: more than {_MAX_FILE} bytes")
        return parse_elf(head + file.read(), str(path))


def needed_files(program: Path) -> list[Path]:
    """Return interpreter and libraries of a program, with the libraries' own, each once.

    Raises:
        NotFound: one is not on this host; the text says which, and who needs it.
    """
    elf = read_elf(program)
    if elf is None:
        return []
    found: dict[str, Path] = {}
    if elf.interpreter:
        found[elf.interpreter] = Path(elf.interpreter)
    cache = read_cache(CACHE)
    todo = [(program, elf)]
    while todo:
        user, its = todo.pop()
        for name in its.needed:
            if name in found or any(Path(known).name == name for known in found):
                continue
            path, library = _find(name, user, its, elf, cache)
            found[name] = path
            todo.append((path, library))
    return list(found.values())


def read_cache(path: Path) -> Mapping[str, Sequence[str]]:
    """Return soname → paths, as the linker's cache lists them; empty without a readable cache."""
    try:
        data = path.read_bytes()
    except OSError:
        return {}
    start = data.find(_CACHE_MAGIC)
    if start < 0 or len(data) < start + _HEADER_BYTES:
        return {}
    data = data[start:]
    count = struct.unpack_from("=I", data, len(_CACHE_MAGIC))[0]
    found: dict[str, list[str]] = defaultdict(list)
    for index in range(min(count, _MAX_ENTRIES)):
        at = _HEADER_BYTES + index * _ENTRY.size
        if at + _ENTRY.size > len(data):
            break
        _, key, value, _, _ = _ENTRY.unpack_from(data, at)
        name, place = _text(data, key), _text(data, value)
        if name and place:
            found[name].append(place)
    return found


def _find(
    name: str, user: Path, its: Elf, program: Elf, cache: Mapping[str, Sequence[str]]
) -> tuple[Path, Elf]:
    for place in _candidates(name, user, its, program, cache):
        path = Path(place)
        try:
            library = read_elf(path)
        except (OSError, InvalidArgument):
            continue
        if library is not None and library.machine == program.machine:
            return path, library
    raise NotFound(f"{user}: it needs {name}, which is not on this host")


def _candidates(
    name: str, user: Path, its: Elf, program: Elf, cache: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    if "/" in name:
        yield name
        return
    rpath = () if its.runpath else (*its.rpath, *program.rpath)
    yield from _below((*rpath, *its.runpath), name, os.path.dirname(os.path.realpath(user)))
    # Variants for newer processors come first in the cache; the image may run elsewhere.
    yield from sorted(cache.get(name, ()), key=lambda place: "/glibc-hwcaps/" in place)
    yield from _below(_DIRECTORIES, name, "")
    for directory in _DIRECTORIES[:2]:
        for each in sorted(Path(directory).glob("*-linux-*")):
            yield str(each / name)


def _below(directories: Iterable[str], name: str, origin: str) -> Iterator[str]:
    for each in directories:
        place = each.replace("${ORIGIN}", origin).replace("$ORIGIN", origin)
        if place.startswith("/"):
            yield os.path.join(place, name)


def _text(data: bytes, at: int) -> str:
    end = data.find(b"\0", at, at + 4096)
    return data[at:end].decode(errors="replace") if 0 < at < end else ""
