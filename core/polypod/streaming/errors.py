"""What ends a connection: its peer broke the rules, or has left."""

from __future__ import annotations


class ProtocolError(Exception):
    """The peer sent what the protocol does not allow; this connection cannot go on, others can."""


class Gone(Exception):
    """The peer has left, or the connection was ended here."""
