"""The daemon's end of keeper, supervisor and logger: find them, or execute the keeper, who starts the rest."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from pathlib import Path

from polypod.plan import channel
from polypod.plugin.errors import Unavailable
from polypod.processes import command
from polypod.processes.connection import Connection
from polypod.processes.supervisor import SupervisorClient


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
        )
        self.logger = Connection(state / "logger.sock", "logger")
        self._supervisor = Connection(state / "supervisor.sock", "supervisor")
        self.supervisor.connect(self._supervisor, self.keeper)

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
        try:
            await host.keeper.open()
            await host._supervisor.open()
            await host.logger.open()
            await host.supervisor.load()
        except BaseException:
            host.close()
            raise
        return host

    async def pids(self) -> dict[str, int]:
        """Return role → pid."""
        answer, _fds = await self.keeper.request("pids")
        return {str(role): int(pid) for role, pid in answer.items()}

    async def shutdown(self) -> None:
        """End the three processes; what they launched must be gone before."""
        with contextlib.suppress(Unavailable):
            await self.keeper.request("shutdown")
        self.close()

    def close(self) -> None:
        """Disconnect; the processes go on."""
        for connection in (self.keeper, self._supervisor, self.logger):
            connection.close()
        self.supervisor.close()


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
    done = subprocess.run(arguments, stdin=subprocess.DEVNULL, cwd="/", check=False)
    if done.returncode != 0:
        msg = f"keeper: {' '.join(arguments[:5])} … ended with {done.returncode}; see stderr"
        raise Unavailable(msg)
