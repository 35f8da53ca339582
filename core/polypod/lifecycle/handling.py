"""The handlers of a running server: listened to, counted, exchanged when the configuration changes.

A pod keeps the backend that made it. Which handlers *new* pods may name is one immutable mapping in
`Parts`, exchanged as a whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from polypod.lifecycle.events import Events
from polypod.lifecycle.heart import Heart
from polypod.lifecycle.parts import Handler
from polypod.lifecycle.tasks import Background
from polypod.lifecycle.views import HandlerView
from polypod.plugin.images import ImageStore


class Handling:
    """Who is listened to, and who may be named."""

    def __init__(self, heart: Heart, events: Events, background: Background) -> None:
        self._heart = heart
        self._events = events
        self._background = background
        self._listeners: dict[int, asyncio.Task[Any]] = {}

    def listen(self, handler: Handler) -> None:
        """Follow a backend's events from now on; one that is followed already stays so."""
        if id(handler) not in self._listeners:
            self._listeners[id(handler)] = self._background.spawn(
                f"events {handler.name}", self._events.listen(handler)
            )

    def users(self, handler: Handler) -> int:
        """Return how many sandboxes, stopped ones too, live by a backend."""
        return sum(each.handler is handler for each in self._heart.sandboxes)

    def let_go(self, handler: Handler) -> None:
        """Stop listening to a backend that is about to be closed."""
        task = self._listeners.pop(id(handler), None)
        if task is not None:
            task.cancel()

    def exchange(
        self,
        handlers: Mapping[str, Handler],
        default: str,
        unusable: tuple[HandlerView, ...],
        image_store: ImageStore,
    ) -> None:
        """Let new pods name these handlers and no others.

        Args:
            handlers: by name; those that were there before are the same objects.
            default: the handler of a request that names none.
            unusable: configured ones that cannot be opened.
            image_store: where PullImage without a handler puts images.
        """
        self._heart.parts = replace(
            self._heart.parts,
            handlers=dict(handlers),
            default_handler=default,
            unusable_handlers=unusable,
            image_store=image_store,
        )
        for handler in handlers.values():
            self._return_to(handler)
            self.listen(handler)

    def _return_to(self, handler: Handler) -> None:
        """Give sandboxes whose handler was not there at the server's start their backend back."""
        for sandbox in self._heart.sandboxes:
            if sandbox.handler is None and sandbox.record.chosen_handler == handler.name:
                sandbox.handler = handler
