"""The handlers of a running server, brought into line with a changed configuration.

A handler that pods live by is not touched: removed from the configuration, it takes no new pods and is
closed when its last pod is gone; changed, it goes on as it was until then. Two backends never share the
directories of one handler.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from polypod.boot.opening import Opener
from polypod.config import Config, HandlerConfig
from polypod.lifecycle.core import Core
from polypod.lifecycle.parts import Handler, Parts
from polypod.lifecycle.views import HandlerView

log = logging.getLogger(__name__)

_BETWEEN = "it is being opened again, because its configuration has changed; try again in a moment"


@dataclass(frozen=True, slots=True)
class _Open:
    """A handler and what it was opened with."""

    config: HandlerConfig
    handler: Handler


class HandlerSet:
    """Which handlers are open, which of them new pods may name."""

    def __init__(self, opener: Opener, core: Core, parts: Parts) -> None:
        """Begin with what the server started with."""
        self._opener = opener
        self._core = core
        configured = opener.config.handlers
        self._open = {name: _Open(configured[name], each) for name, each in parts.handlers.items()}
        self._retired: dict[str, _Open] = {}
        self._unusable = {each.name: each for each in parts.unusable_handlers}

    def configured(self) -> dict[str, HandlerConfig]:
        """Return what the open handlers were opened with, retired ones included."""
        return {name: each.config for name, each in (self._retired | self._open).items()}

    async def follow(self, config: Config) -> dict[str, str]:
        """Open, close and exchange handlers as a configuration says.

        Returns:
            Handler → why its change has to wait. Call again later: what is done is not done twice.
        """
        self._opener.config = config
        waiting = self._retire(config.handlers)
        await self._publish(config)
        await self._close_unused()
        for name, wanted in config.handlers.items():
            if name not in self._open and name not in waiting:
                await self._bring(name, wanted, waiting)
        await self._publish(config)
        return waiting

    def _retire(self, wanted: Mapping[str, HandlerConfig]) -> dict[str, str]:
        waiting = {}
        for name, each in list(self._open.items()):
            if wanted.get(name) == each.config:
                continue
            if name in wanted and (users := self._core.handling.users(each.handler)):
                waiting[name] = _in_use(users)
                continue
            log.info("handler retired name=%s", name)
            self._retired[name] = self._open.pop(name)
        for name in [each for each in self._unusable if each not in wanted]:
            del self._unusable[name]
        return waiting

    async def _close_unused(self) -> None:
        for name, each in list(self._retired.items()):
            if self._core.handling.users(each.handler):
                continue
            del self._retired[name]
            self._core.handling.let_go(each.handler)
            await self._opener.close_handler(each.handler)
            log.info("handler closed name=%s", name)

    async def _bring(self, name: str, wanted: HandlerConfig, waiting: dict[str, str]) -> None:
        """Open a handler, or take one back that was removed while pods lived by it."""
        former = self._retired.get(name)
        if former is not None and former.config == wanted:
            self._open[name] = self._retired.pop(name)
            return
        if former is not None:
            waiting[name] = _in_use(self._core.handling.users(former.handler))
            return
        found = await self._opener.handler(name, wanted)
        if isinstance(found, Handler):
            self._open[name] = _Open(wanted, found)
            self._unusable.pop(name, None)
            log.info("handler opened name=%s type=%s", name, wanted.type)
        else:
            self._unusable[name] = found

    async def _publish(self, config: Config) -> None:
        handlers = {name: each.handler for name, each in self._open.items()}
        default = config.server.default_handler
        closed = {
            name: self._unusable.get(name) or _between(name, each)
            for name, each in config.handlers.items()
            if name not in handlers
        }
        unusable = tuple(replace(each, is_default=each.name == default) for each in closed.values())
        store = await self._opener.default_store(handlers)
        self._core.handling.exchange(handlers, default, unusable, store)


def _in_use(users: int) -> str:
    pods = "1 sandbox lives" if users == 1 else f"{users} sandboxes live"
    return f"{pods} by it as it was; the change is made when they are removed"


def _between(name: str, wanted: HandlerConfig) -> HandlerView:
    return HandlerView(name, wanted.type, is_default=False, features=frozenset(), unusable=_BETWEEN)
