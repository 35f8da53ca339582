"""What a CRI server refused, readable."""

from __future__ import annotations

import grpc


class CriError(Exception):
    """A call failed: `code` is the gRPC status, `text` the server's words, `call` the RPC."""

    def __init__(self, call: str, code: grpc.StatusCode, text: str) -> None:
        self.call = call
        self.code = code
        self.text = text
        super().__init__(f"{call}: {text} ({code.name})")
