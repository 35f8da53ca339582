"""Answers that are streams: lists in pieces that fit a message, and events as they come.

Spec:
    kubernetes/cri-api api.proto, Stream…: each item once, then the end of the stream; how many items a
    message holds is the server's choice. Lists that outgrow one message are why these calls exist.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from google.protobuf.message import Message

V = TypeVar("V")
M = TypeVar("M")

PIECE_BYTES = 1 << 20
"""Of items in one message: far below what clients accept (16 MiB), far above what a message costs."""


async def pieces(
    views: Iterable[V],
    encode: Callable[[V], Message],
    wrap: Callable[[Sequence[Any]], M],
    *,
    limit: int = PIECE_BYTES,
) -> AsyncIterator[M]:
    """Yield messages that hold all views, in order; none for no views.

    Args:
        views: one snapshot.
        encode: makes one item.
        wrap: makes a message of items.
        limit: bytes of items after which a message is sent; one item alone may have more.
    """
    batch: list[Message] = []
    size = 0
    for view in views:
        item = encode(view)
        length = item.ByteSize()
        if batch and size + length > limit:
            yield wrap(batch)
            batch, size = [], 0
            await asyncio.sleep(0)  # a long list must not keep others waiting
        batch.append(item)
        size += length
    if batch:
        yield wrap(batch)
