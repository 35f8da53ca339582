"""Single values of requests: each function refuses what cannot be meant, naming the field."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypeVar

from polypod.plugin import requests as r
from polypod.plugin.errors import InvalidArgument

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from polypod.api.v1 import api_pb2 as pb

E = TypeVar("E", bound=IntEnum)

MAX_TEXT_LENGTH = 1 << 20
"""No single string of a request is longer: the whole may be 16 MiB, an annotation 256 KiB."""


def require(message: Message, name: str, field: str) -> None:
    """Refuse a request without a sub-message."""
    if not message.HasField(name):
        raise InvalidArgument(f"{field} is missing")


def named(value: str, field: str) -> None:
    """Refuse an empty name."""
    if not value:
        raise InvalidArgument(f"{field} is empty")
    text(value, field)


def text(value: str, field: str) -> str:
    """Return a string without NUL and of bounded length."""
    if "\0" in value:
        raise InvalidArgument(f"{field} contains a NUL character")
    if len(value) > MAX_TEXT_LENGTH:
        raise InvalidArgument(f"{field} has {len(value)} characters, allowed are {MAX_TEXT_LENGTH}")
    return value


def texts(values: Iterable[str], field: str) -> tuple[str, ...]:
    """Return strings, each checked as `text` does."""
    return tuple(text(value, f"{field}[{i}]") for i, value in enumerate(values))


def pairs(message: Any, field: str) -> dict[str, str]:  # noqa: ANN401 - a protobuf map
    """Return a map, keys and values checked as `text` does."""
    found = dict(message)
    for key, value in found.items():
        text(key, f"{field} key")
        text(value, f"{field}[{key!r}]")
    return found


def address(value: str, field: str) -> str:
    """Return an IP address, or an empty text."""
    try:
        return str(ipaddress.ip_address(value)) if value else ""
    except ValueError:
        raise InvalidArgument(f"{field} is {value[:80]!r}: give an IP address, or none") from None


def absolute(value: str, field: str) -> str:
    """Return a path: absolute, or empty."""
    text(value, field)
    if value and not value.startswith("/"):
        raise InvalidArgument(f"{field} is {value!r}: give an absolute path")
    return value


def enum_member(kind: type[E], value: int, field: str) -> E:
    """Return the member of an enum; numbers that we do not know are refused."""
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(f"{item.value} ({item.name})" for item in kind)
        raise InvalidArgument(f"{field} is {value}: known values are {known}") from None


def mappings(items: Iterable[pb.IDMapping], field: str) -> tuple[r.IdMapping, ...]:
    """Return ranges of ids; empty ranges are refused."""
    found = tuple(r.IdMapping(m.host_id, m.container_id, m.length) for m in items)
    for i, item in enumerate(found):
        if item.length == 0:
            raise InvalidArgument(f"{field}[{i}].length is 0")
    return found
