"""Live configuration: the files are read again at SIGHUP and when one of them changes.

What can change while the server runs does: handlers and which is the default, the log level, what the
image stores take. A key that cannot is named in the log and in `polypod config show --running`, and what
was in force stays in force. A configuration that is wrong changes nothing at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace

from polypod import config as configuration
from polypod.boot import journal, places
from polypod.boot.assembly import Assembled, check
from polypod.boot.handler_set import HandlerSet
from polypod.boot.processes import is_simulated
from polypod.config import Config, HandlerConfig, Source
from polypod.config_files import Signature
from polypod.lifecycle.clock import settle
from polypod.plugin.errors import FailedPrecondition, PolypodError
from polypod.plugin.images import Reloadable

log = logging.getLogger(__name__)

_LIVE = (
    "server.log_level",
    "server.watch_s",
    "server.default_handler",
    "handlers.",
    "images.",
)
_SETTLE_S = 0.1
_SETTLE_LOOKS = 50
_PENDING_S = 2.0
"""Between looks whether the last pod of a handler that is to change is gone."""


@dataclass(frozen=True, slots=True)
class Reload:
    """What became of one reading of the files."""

    at_ns: int
    changed: tuple[str, ...] = ()
    """Keys that have a new value now."""
    restart: tuple[str, ...] = ()
    """Keys whose new value needs a restart."""
    waiting: Mapping[str, str] = field(default_factory=dict)
    """Handler → why its change waits."""
    error: str = ""
    """Why nothing was changed."""

    def document(self) -> dict[str, object]:
        """Return it as JSON values, for the verbose Status."""
        return {
            "at": self.at_ns,
            "changed": list(self.changed),
            "needsRestart": list(self.restart),
            "waiting": dict(self.waiting),
            "error": self.error,
        }


class Reloading:
    """Keeps a running server and its files together."""

    def __init__(
        self,
        source: Source,
        config: Config,
        assembled: Assembled,
        where: places.Places,
        asked: asyncio.Event,
    ) -> None:
        """Prepare; nothing is read before `run`.

        Args:
            source: to read again.
            config: what the server started with.
            assembled: its parts, recovered.
            where: its directories; what is in force is noted there for ``polypod down``.
            asked: set by whoever wants the files to be read now: SIGHUP.
        """
        self._source = source
        self._seen = source.signature()
        self._running = config
        self._wanted = config
        self._assembled = assembled
        self._places = where
        self._handlers = HandlerSet(assembled.opener, assembled.core, assembled.parts)
        self._last = Reload(time.time_ns())
        self._asked = asked
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._tell()
        self._task = asyncio.create_task(self._run(), name="configuration")

    async def stop(self) -> None:
        """End; a handler that was about to be opened is opened by the next start."""
        if self._task is not None:
            await settle(self._task)

    async def _run(self) -> None:
        while True:
            asked = await self._wait()
            if asked or self._source.signature() != self._seen:
                self._seen = await self._settled()
                await self._guarded(self._read)
            elif self._last.waiting:
                await self._guarded(self._again)

    async def _wait(self) -> bool:
        """Return whether somebody asked, or False after a while."""
        every = self._running.server.watch_s or (_PENDING_S if self._last.waiting else None)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._asked.wait(), every)
        asked = self._asked.is_set()
        self._asked.clear()
        return asked

    async def _settled(self) -> Signature:
        """Return what the files are when they change no more: who writes several gets the time for all."""
        seen = self._source.signature()
        for _ in range(_SETTLE_LOOKS):
            await asyncio.sleep(_SETTLE_S)
            before, seen = seen, self._source.signature()
            if before == seen:
                break
        return seen

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as error:
            log.exception("configuration not applied")
            self._last = Reload(time.time_ns(), error=repr(error))
        self._tell()

    async def _read(self) -> None:
        try:
            wanted = self._source.load()
            self._check(wanted)
        except PolypodError as error:
            log.error("configuration refused, the former one stays in force: %s", error)
            self._last = replace(self._last, at_ns=time.time_ns(), error=str(error))
            return
        self._wanted = wanted
        await self._apply()

    def _check(self, wanted: Config) -> None:
        check(wanted)
        journal.check_level(wanted.server.log_level)
        if is_simulated(self._running) and not is_simulated(wanted):
            raise FailedPrecondition(
                "this server was started for simulated handlers alone: restart it for real ones"
            )
        for store in self._stores():
            store.check(wanted.images)

    def _stores(self) -> list[Reloadable]:
        return [
            each for each in self._assembled.opener.stores.values() if isinstance(each, Reloadable)
        ]

    async def _again(self) -> None:
        """Try once more what waited; what was wrong with the files since then stays told."""
        error = self._last.error
        await self._apply()
        self._last = replace(self._last, error=error)

    async def _apply(self) -> None:
        wanted, before = self._wanted, self._running
        restart = [key for key in _changed(before, wanted) if not key.startswith(_LIVE)]
        if wanted.server.log_level != before.server.log_level:
            journal.set_up(wanted.server.log_level)
        for store in self._stores() if wanted.images != before.images else ():
            restart += [f"images.{key}" for key in store.reload(wanted.images)]
        waiting = await self._handlers.follow(wanted)
        self._running = self._in_force(waiting, restart)
        changed = tuple(_changed(before, self._running))
        former, self._last = (
            self._last,
            Reload(time.time_ns(), changed, tuple(sorted(restart)), waiting),
        )
        places.note(self._places, replace(self._running, handlers=self._all_handlers()))
        self._log(former)

    def _all_handlers(self) -> dict[str, HandlerConfig]:
        """Return those of the configuration, and those that it has no more but pods still live by."""
        return {**self._running.handlers, **self._handlers.configured()}

    def _in_force(self, waiting: Mapping[str, str], restart: list[str]) -> Config:
        """Return the former configuration with all that could be changed."""
        wanted, before = self._wanted, self._running
        open_ = self._handlers.configured()
        handlers = {
            name: open_.get(name, each) if name in waiting else each
            for name, each in wanted.handlers.items()
        }
        images = {
            key: before.images.get(key) if f"images.{key}" in restart else value
            for key, value in wanted.images.items()
            if f"images.{key}" not in restart or key in before.images
        }
        server = replace(
            before.server,
            log_level=wanted.server.log_level,
            watch_s=wanted.server.watch_s,
            default_handler=wanted.server.default_handler,
        )
        origins = {k: v for k, v in before.origins.items() if not k.startswith(_LIVE)}
        origins |= {k: v for k, v in wanted.origins.items() if k.startswith(_LIVE)}
        return replace(before, server=server, images=images, handlers=handlers, origins=origins)

    def _tell(self) -> None:
        """Put what is in force, and the last reading, into the verbose Status."""
        self._assembled.core.info["configuration"] = {
            key: {"value": value, "origin": origin}
            for key, value, origin in configuration.show(self._running)
        }
        self._assembled.core.info["reload"] = self._last.document()

    def _log(self, former: Reload) -> None:
        """Say what is new: a change that waits is looked at again and again."""
        last = self._last
        if last.changed:
            log.info("configuration changed keys=%s", ",".join(last.changed))
        if last.restart and last.restart != former.restart:
            log.warning("configuration needs a restart for keys=%s", ",".join(last.restart))
        for name, why in last.waiting.items():
            if former.waiting.get(name) != why:
                log.info("configuration waits handler=%s reason=%s", name, why)


def _changed(before: Config, after: Config) -> list[str]:
    """Return the keys whose values differ, sorted."""
    old = {key: value for key, value, _origin in configuration.show(before)}
    new = {key: value for key, value, _origin in configuration.show(after)}
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
