"""Keeper, supervisor and logger for the heart: the real ones, or the simulation's."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from polypod.config import Config
from polypod.lifecycle.ports import Logs
from polypod.plugin.errors import FailedPrecondition
from polypod.plugin.services import Supervisor

SIMULATOR = "simulator"
"""The runtime type of `polypod.testing`."""


@dataclass(frozen=True, slots=True)
class Processes:
    """What the heart is given of them."""

    supervisor: Supervisor
    logs: Logs
    close: Callable[[], Awaitable[None]]
    """Disconnect; they go on."""
    shutdown: Callable[[], Awaitable[None]]
    """End them; what they launched is gone before."""
    restarts: Callable[[], Mapping[str, int]] = dict
    """Role → how often it went away while we looked."""


def is_simulated(config: Config) -> bool:
    """Tell whether every handler is the simulator's.

    Its programs run in the daemon and die with it: processes that outlive the daemon would have
    nothing to keep, so they are simulated too, and no privilege is needed.
    """
    return all(handler.type == SIMULATOR for handler in config.handlers.values())


async def open_processes(config: Config, state: Path) -> Processes:
    """Find or start the processes of a state directory.

    Raises:
        FailedPrecondition: this user cannot have them; the text says what to do.
        Unavailable: they cannot be started.
    """
    if is_simulated(config):
        return _simulated()
    if os.geteuid() != 0:
        raise FailedPrecondition(
            "runtime handlers other than the simulator need root; without it try "
            "`polypod serve --set handlers.sim.type=simulator --set server.default_handler=sim`"
        )
    from polypod.processes.host import ProcessHost
    from polypod.processes.logs import LogService

    host = await ProcessHost.open(state)
    logs = LogService(host.keeper, host.logger)

    async def close() -> None:
        await logs.aclose()
        host.close()

    async def shutdown() -> None:
        await logs.aclose()
        await host.shutdown()

    return Processes(host.supervisor, logs, close, shutdown, host.losses)


def _simulated() -> Processes:
    from polypod.testing.fakes import FakeLogs, FakeSupervisor

    async def nothing() -> None:
        """They live in this process and end with it."""

    return Processes(FakeSupervisor(), FakeLogs(), nothing, nothing)
