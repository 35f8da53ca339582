"""Netlink messages as bytes: headers and attributes, nothing that knows what they mean.

Spec:
    linux/netlink.h, linux/rtnetlink.h; man netlink(7). Checked against pyroute2 in the tests.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLA_F_NESTED = 0x8000

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")


def align(length: int) -> int:
    """Round up to netlink's four bytes."""
    return (length + 3) & ~3


def attribute(kind: int, payload: bytes) -> bytes:
    """Return one attribute, padded."""
    length = 4 + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + bytes(align(length) - length)


def nested(kind: int, parts: Iterable[bytes]) -> bytes:
    """Return an attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(parts))


def text(kind: int, value: str) -> bytes:
    """Return a NUL-terminated string attribute."""
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    """Return a 32-bit attribute in host order (rtnetlink)."""
    return attribute(kind, struct.pack("=I", value))


def be32(kind: int, value: int) -> bytes:
    """Return a 32-bit attribute in network order (nfnetlink)."""
    return attribute(kind, struct.pack("!i" if value < 0 else "!I", value))


def message(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    """Return one whole message, padded."""
    length = _HEADER.size + len(payload)
    header = _HEADER.pack(length, kind, flags | NLM_F_REQUEST, sequence, 0)
    return header + payload + bytes(align(length) - length)


def attributes(payload: bytes) -> dict[int, bytes]:
    """Return kind → payload of a run of attributes; of repeated kinds the last."""
    found: dict[int, bytes] = {}
    offset = 0
    while offset + 4 <= len(payload):
        length, kind = _ATTRIBUTE.unpack_from(payload, offset)
        if length < 4 or offset + length > len(payload):
            break
        found[kind & 0x3FFF] = payload[offset + 4 : offset + length]
        offset += align(length)
    return found
