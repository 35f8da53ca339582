"""Plugins that are started with the server: programs of a directory, each with its configuration."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from polypod_nri.peer import parse_name

log = logging.getLogger(__name__)

_GRACE_S = 2.0


@dataclass(frozen=True, slots=True)
class Program:
    """One of the directory."""

    path: Path
    index: str
    name: str
    config: str


def discover(plugin_dir: Path, config_dir: Path) -> list[Program]:
    """Return the programs of a directory in the order of their names; no directory is none.

    A file that is no program, or is not named ``NN-NAME``, is passed over with a line in the log.
    """
    found = []
    for path in sorted(plugin_dir.iterdir()) if plugin_dir.is_dir() else ():
        if not path.is_file() or not os.access(path, os.X_OK):
            continue
        identity = parse_name(path.name)
        if identity is None:
            log.warning("NRI plugin passed over path=%s: its name is not NN-NAME", path)
            continue
        found.append(Program(path, *identity, _config(config_dir, *identity)))
    return found


def _config(directory: Path, index: str, name: str) -> str:
    for path in (directory / f"{index}-{name}.conf", directory / f"{name}.conf"):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return path.read_text(encoding="utf-8")
    return ""


class Launched:
    """A program that runs; the server's end of its socket is `sock`."""

    def __init__(self, sock: socket.socket, process: asyncio.subprocess.Process) -> None:
        self.sock = sock
        self._process = process

    @classmethod
    async def start(cls, program: Program) -> Launched:
        """Execute a program. OSError: it cannot be executed."""
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                str(program.path),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=2,  # the server's own log
                pass_fds=(theirs.fileno(),),
                env={
                    "PATH": os.environ.get("PATH", os.defpath),
                    "NRI_PLUGIN_NAME": program.name,
                    "NRI_PLUGIN_IDX": program.index,
                    "NRI_PLUGIN_SOCKET": str(theirs.fileno()),
                },
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        return cls(ours, process)

    async def stop(self) -> None:
        """End it: it has a moment after its connection was closed, then SIGTERM, then SIGKILL."""
        for end in (None, self._process.terminate, self._process.kill):
            if end is not None:
                with contextlib.suppress(ProcessLookupError):
                    end()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), _GRACE_S)
                return
