"""The one room of this plugin that knows protobuf: messages, and what is put around them.

`api` has the messages of NRI; the functions make and read what ttrpc puts around one.
"""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from polypod_nri.wire import api_pb2 as api
from polypod_nri.wire import envelope_pb2 as envelope

__all__ = [
    "Garbage",
    "Message",
    "answer",
    "api",
    "decode",
    "question",
    "read_answer",
    "read_question",
]

M = TypeVar("M", bound=Message)


class Garbage(Exception):
    """Bytes that are not the message that they ought to be."""


def decode(kind: type[M], data: bytes) -> M:
    """Return the message that bytes stand for.

    Raises:
        Garbage: they stand for none.
    """
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise Garbage(f"no {kind.DESCRIPTOR.name}: {error}") from error


def question(service: str, method: str, payload: bytes, timeout_ns: int = 0) -> bytes:
    """Return a call as ttrpc sends it."""
    return envelope.Request(
        service=service, method=method, payload=payload, timeout_nano=timeout_ns
    ).SerializeToString()


def read_question(data: bytes) -> tuple[str, str, bytes]:
    """Return service, method and payload of a call. Raises Garbage."""
    found = decode(envelope.Request, data)
    return found.service, found.method, found.payload


def answer(payload: bytes = b"", *, code: int = 0, text: str = "") -> bytes:
    """Return an answer as ttrpc sends it; a code other than 0 is an error."""
    if not code:
        return envelope.Response(payload=payload).SerializeToString()
    status = envelope.Status(code=code, message=text)
    return envelope.Response(status=status).SerializeToString()


def read_answer(data: bytes) -> tuple[bytes, int, str]:
    """Return payload, code and text of an answer. Raises Garbage."""
    found = decode(envelope.Response, data)
    return found.payload, found.status.code, found.status.message
