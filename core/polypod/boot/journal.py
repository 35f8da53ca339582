"""Logging to stderr: one line per event, key=value, with the request and the object it belongs to."""

from __future__ import annotations

import logging
import sys

from typing_extensions import override

from polypod.api.interceptors import object_id, request_id
from polypod.plugin.errors import InvalidArgument

LEVELS = ("debug", "info", "warning", "error")


class _Line(logging.Formatter):
    """``TIME LEVEL NAME [request=N object=ID] MESSAGE``."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        number, name = request_id.get(), object_id.get()
        # The line of the request itself says all that.
        told = number == "-" or record.name == "polypod.api"
        record.where = "" if told else f"request={number} object={name[:13]} "
        return super().format(record)


def check_level(level: str) -> None:
    """Raise InvalidArgument if there is no such level."""
    if level not in LEVELS:
        raise InvalidArgument(f"server.log_level is {level!r}: give one of {', '.join(LEVELS)}")


def set_up(level: str) -> None:
    """Send everything from a level on to stderr.

    Raises:
        InvalidArgument: there is no such level.
    """
    check_level(level)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Line("%(asctime)s.%(msecs)03d %(levelname)s %(name)s %(where)s%(message)s", "%H:%M:%S")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in ("asyncio", "grpc"):
        logging.getLogger(name).setLevel(logging.WARNING)
