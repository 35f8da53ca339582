"""The messages of CRI v1 for those who use the client: no other room imports protobuf for them."""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import MessageToDict

from polypod.api.v1 import api_pb2 as pb

__all__ = ["as_dict", "pb"]


def as_dict(message: Any) -> dict[str, Any]:  # noqa: ANN401 - any protobuf message
    """Return a message as JSON values, with the field names of the .proto file."""
    found: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return found
