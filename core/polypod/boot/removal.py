"""``polypod down``: everything that a server made is stopped, removed and given back.

A living server is asked to remove its pods and then to leave. What it could not remove, and all that
a dead one left, is found by the same recovery that a start runs, and removed here. Images stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import select
import signal
from pathlib import Path
from typing import Protocol, runtime_checkable

from polypod.api.server import socket_path
from polypod.boot import cgroups, places
from polypod.boot.assembly import Assembled, assemble
from polypod.client import CriClient, CriError
from polypod.config import Config
from polypod.lifecycle.core import Core
from polypod.lifecycle.trees import remove_tree
from polypod.lifecycle.views import Filter
from polypod.plugin.errors import BackendError, PolypodError

log = logging.getLogger(__name__)

ASK_S = 30.0
"""How long a living server may take for one call before we go on without it."""
LEAVE_S = 30.0
"""From SIGTERM until a living server is ended by SIGKILL: what it leaves is recovered here."""


@runtime_checkable
class Destroyable(Protocol):
    """What a part may have beside its contract: a way to take off the host what it made for all pods."""

    async def destroy(self) -> None:
        """Remove it. Called when no pod is left."""
        ...


async def take_down(root: Path, state: Path) -> int:
    """Remove everything below a root and a state; return the exit code.

    Raises:
        BackendError: something is left; the text names it.
    """
    config = _configuration(root, state)
    if config is None:
        return 0
    await _end_server(config, root)
    where = places.make(root, state)
    with places.claim(where):
        problems = await _remove_all(config, where)
        if not problems:
            # Otherwise all that a second try needs stays where it is.
            problems += await cgroups.remove(config.server.cgroup_parent)
            problems += _clear(state)
            _forget_socket(config)
    if problems:
        raise BackendError("down: left behind: " + "; ".join(problems))
    return 0


def _configuration(root: Path, state: Path) -> Config | None:
    """Return what the last server ran with, in these directories; None where none ever ran."""
    noted = places.noted(root)
    if noted is None:
        return None
    server = dataclasses.replace(noted.server, root=str(root), state=str(state))
    return dataclasses.replace(noted, server=server)


# A living server


async def _end_server(config: Config, root: Path) -> None:
    pid = places.holder(root)
    if pid is None:
        return
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await _ask_to_remove(config)
        await _terminate(pidfd)
    finally:
        os.close(pidfd)


async def _ask_to_remove(config: Config) -> None:
    """Let the server remove its pods; what it does not do in time is done after it has left."""
    async with CriClient(config.server.listen, timeout_s=ASK_S) as cri:
        try:
            for pod in await cri.list_sandboxes():
                await cri.stop_sandbox(pod.id)
                await cri.remove_sandbox(pod.id)
        except CriError as error:
            log.warning(
                "the server does not remove its pods, so this is done without it: %s", error
            )


async def _terminate(pidfd: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        if await asyncio.to_thread(_gone, pidfd, LEAVE_S):
            return
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        await asyncio.to_thread(_gone, pidfd, LEAVE_S)


def _gone(pidfd: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


# What is left


async def _remove_all(config: Config, where: places.Places) -> list[str]:
    assembled = await assemble(config, where)
    problems: list[str] = []
    try:
        await assembled.core.open()
        problems += await _remove_pods(assembled.core)
        await assembled.core.close()
        problems += await _destroy(assembled)
    finally:
        await assembled.closers.aclose()
    return problems


async def _remove_pods(core: Core) -> list[str]:
    problems = []
    for pod in await core.list_sandboxes(Filter()):
        try:
            await core.stop_sandbox(pod.id)
            await core.remove_sandbox(pod.id)
        except (PolypodError, OSError) as error:
            problems.append(f"sandbox {pod.id}: {error}")
    return problems


async def _destroy(assembled: Assembled) -> list[str]:
    """Take off the host what parts made for all pods, then end keeper, supervisor and logger."""
    parts = assembled.parts
    named: list[tuple[str, object]] = [("network", parts.network)]
    named += [(f"handler {name}", each.backend) for name, each in parts.handlers.items()]
    problems = []
    for name, part in named:
        if isinstance(part, Destroyable):
            try:
                await part.destroy()
            except (PolypodError, OSError) as error:
                problems.append(f"{name}: {error}")
    if not problems:
        await assembled.processes.shutdown()
    return problems


def _clear(state: Path) -> list[str]:
    """Remove what lies below the state directory; a mount below it stops that, and is named."""
    problems = []
    for each in sorted(state.iterdir()):
        try:
            if each.is_dir() and not each.is_symlink():
                remove_tree(each)
            else:
                each.unlink()
        except OSError as error:
            problems.append(f"{each}: {error.strerror}")
    return problems


def _forget_socket(config: Config) -> None:
    with contextlib.suppress(OSError):
        path = socket_path(config.server.listen)
        if path.is_socket():
            path.unlink()
