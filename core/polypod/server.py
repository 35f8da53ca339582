"""The composition root: the one place where parts are joined. `serve` and `down` start here."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import polypod
from polypod.api.server import ApiServer, socket_path
from polypod.boot import journal, places
from polypod.boot.assembly import Assembled, assemble
from polypod.boot.reloading import Reloading
from polypod.boot.removal import take_down
from polypod.boot.watching import open_observers
from polypod.config import Config, Source

if TYPE_CHECKING:
    from polypod.telemetry.watchers import TelemetrySet

log = logging.getLogger("polypod.server")

GRACE_S = 5.0
"""For calls that run when the server is told to leave."""


def serve(source: Source) -> int:
    """Run a server in the foreground until SIGTERM or SIGINT; workloads outlive it.

    The socket is there from the start and answers UNAVAILABLE until everything is recovered. A second
    signal leaves at once; SIGHUP reads the configuration again.

    Raises:
        PolypodError: it cannot start; the text says what to do.
    """
    config = source.load()
    journal.set_up(config.server.log_level)
    socket_path(config.server.listen)
    where = places.make(Path(config.server.root), Path(config.server.state))
    _raise_limits()
    with places.claim(where):
        places.note(where, config)
        asyncio.run(_serve(source, config, where))
    return 0


def down(root: Path, state: Path) -> int:
    """Stop and remove all that a server made, whether it runs or not; end what it started.

    Raises:
        PolypodError: something could not be removed; the text names it.
    """
    journal.set_up("warning")
    return asyncio.run(take_down(root, state))


async def _serve(source: Source, config: Config, where: places.Places) -> None:
    began = time.monotonic()
    leave, reload = _signals()
    recovered = asyncio.Event()
    telemetry = _telemetry(config)
    watch = telemetry.watch if telemetry is not None else None
    assembled = await assemble(config, where, watch)
    reloading = Reloading(source, config, assembled, where, reload)
    api = ApiServer(assembled.core, config.server.listen, ready=recovered.is_set, watch=watch)
    try:
        if telemetry is not None:
            await telemetry.start(assembled.core.census, assembled.processes.restarts)
        await assembled.streaming.start()
        await api.start()
        if await _opened_before(leave, assembled, config):
            recovered.set()
            log.info("ready version=%s seconds=%.3f", polypod.__version__, time.monotonic() - began)
            _settle_memory()
            reloading.start()
            await leave.wait()
    finally:
        await reloading.stop()
        assembled.core.end_events()
        await api.stop(GRACE_S)
        await assembled.streaming.stop()
        await assembled.core.close()
        await assembled.closers.aclose()
        if telemetry is not None:
            await telemetry.stop()
        log.info("left; workloads go on")


def _telemetry(config: Config) -> TelemetrySet | None:
    """Return what the configuration asks for; its libraries are loaded for nobody else."""
    wanted = config.metrics
    if not wanted.listen and not wanted.traces:
        return None
    from polypod.telemetry.watchers import TelemetrySet

    return TelemetrySet(wanted.listen, traces=wanted.traces)


async def _opened_before(leave: asyncio.Event, assembled: Assembled, config: Config) -> bool:
    """Recover; tell whether that was done when we were asked to leave."""
    opening = asyncio.create_task(_open(assembled, config))
    leaving = asyncio.create_task(leave.wait())
    await asyncio.wait({opening, leaving}, return_when=asyncio.FIRST_COMPLETED)
    leaving.cancel()
    if opening.done():
        opening.result()
        return True
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    return False


async def _open(assembled: Assembled, config: Config) -> None:
    found = await assembled.core.open()
    log.info(
        "recovered sandboxes=%d containers=%d rolled_back=%d orphans=%d",
        found.sandboxes,
        found.containers,
        len(found.rolled_back),
        len(found.orphans),
    )
    await open_observers(assembled.registry, assembled.core, config, assembled.closers)


def _signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Return what SIGTERM and SIGINT set, the second of which ends the process, and what SIGHUP sets."""
    leave, reload = asyncio.Event(), asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        if leave.is_set():
            os._exit(128 + number)
        log.info("leaving signal=%s", number.name)
        leave.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload.set)
    return leave, reload


def _raise_limits() -> None:
    """Take all the descriptors that we may have: each pod costs some."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _settle_memory() -> None:
    """Keep the collector from walking what lives as long as the server does."""
    gc.collect()
    gc.freeze()
