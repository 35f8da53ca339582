"""The daemon's end of keeper, supervisor and logger: find them, or execute the keeper, who starts the rest."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
from pathlib import Path

from polypod.plan import channel
from polypod.plugin.errors import Unavailable
from polypod.processes import command
from polypod.processes.connection import Connection
from polypod.processes.logs import LogService
from polypod.processes.supervisor import SupervisorClient

_log = logging.getLogger(__name__)
_OTHERS_START_IT_S = 0.5
"""Supervisor or logger start a keeper that died; if both died with it, we do."""
_STARTS_S = 2.0
_ENDS_S = 10.0


class ProcessHost:
    """Connections to the three processes of one ``server.state``."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self.supervisor = SupervisorClient()
        self.keeper = Connection(
            state / "keeper.sock",
            "keeper",
            on_event=self.supervisor.on_keeper_event,
            on_connect=self.supervisor.on_keeper_connect,
            on_lost=self._keeper_lost,
        )
        self.logger = Connection(state / "logger.sock", "logger")
        self._supervisor = Connection(state / "supervisor.sock", "supervisor")
        self.supervisor.connect(self._supervisor, self.keeper)
        self.logs = LogService(self.keeper, self.logger)
        self._watch: asyncio.Task[None] | None = None
        self._ending = False

    @classmethod
    async def open(cls, state: Path) -> ProcessHost:
        """Connect to what runs, or start it.

        Raises:
            Unavailable: it cannot be started; the text says what was tried.
        """
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not is_running(state):
            await asyncio.to_thread(_start_keeper, state)
        host = cls(state)
        # One that was just killed may have answered; and what it left may not start another one.
        host._keeper_lost()
        try:
            await host.keeper.open()
            await host._supervisor.open()
            await host.logger.open()
            await host.supervisor.load()
        except BaseException:
            host.close()
            raise
        return host

    def losses(self) -> dict[str, int]:
        """Return role → how often it went away while we were connected."""
        connections = {
            "keeper": self.keeper,
            "logger": self.logger,
            "supervisor": self._supervisor,
        }
        return {role: each.losses for role, each in connections.items()}

    async def pids(self) -> dict[str, int]:
        """Return role → pid."""
        answer, _fds = await self.keeper.request("pids")
        return {str(role): int(pid) for role, pid in answer.items()}

    async def shutdown(self) -> None:
        """End the three processes; what they launched should be gone before, else it runs on alone."""
        # From here on a keeper that is gone is what was asked for.
        self._ending = True
        if self._watch is not None:
            self._watch.cancel()
        with contextlib.suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(_ENDS_S):
                await self.keeper.request("shutdown")
        self.close()

    def close(self) -> None:
        """Disconnect; the processes go on."""
        if self._watch is not None:
            self._watch.cancel()
        for connection in (self.keeper, self._supervisor, self.logger):
            connection.close()
        self.supervisor.close()

    def _keeper_lost(self) -> None:
        if not self._ending and (self._watch is None or self._watch.done()):
            self._watch = asyncio.ensure_future(self._have_keeper())

    async def _have_keeper(self) -> None:
        """See to it that there is a keeper again; two are never: the second one leaves at once."""
        pause_s = _OTHERS_START_IT_S
        while True:
            await asyncio.sleep(pause_s)
            if is_running(self._state):
                return
            _log.warning("keeper: gone with those that would replace it; starting another one")
            try:
                await asyncio.to_thread(_start_keeper, self._state)
            except (OSError, Unavailable) as error:
                _log.error("keeper: %s", error)
            pause_s = _STARTS_S


def is_running(state: Path) -> bool:
    """Tell whether a keeper answers for this state directory."""
    try:
        channel.connect(str(state / "keeper.sock")).close()
    except (OSError, channel.ChannelError):
        return False
    return True


def _start_keeper(state: Path) -> None:
    # It forks itself away at once, so waiting takes as long as Python needs to start.
    arguments = command.keeper(state)
    done = subprocess.run(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd="/",
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        msg = f"keeper: {' '.join(arguments[:5])} … ended with {done.returncode}: {said[-1000:]}"
        raise Unavailable(msg)
