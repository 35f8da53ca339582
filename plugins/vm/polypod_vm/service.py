"""A libvirtd of our own: written down, executed through the supervisor, found again, stopped when asked."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal as signals
from pathlib import Path
from typing import Final

from polypod.plugin import AlreadyExists, NotFound, ProcessId, Supervisor, Unavailable
from polypod_vm import child
from polypod_vm.hypervisor import Hypervisor

_log = logging.getLogger(__name__)
_INSIDE: Final = Path("/run/libvirt")
"""Where libvirtd and QEMU see `Service.run`."""
_STARTS_S: Final = 30.0
_STARTS: Final = 3
"""One that was just killed may still look alive; one that ends again and again is given up."""
_ENDS_S: Final = 10.0
_AGAIN_S: Final = 0.02
_CONFIG: Final = """\
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_rw_perms = "0700"
log_outputs = "3:stderr"
"""
_QEMU_CONFIG: Final = """\
stdio_handler = "file"
security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
namespaces = []
cgroup_controllers = []
"""
"""No virtlogd, no mandatory access control, no private /dev: settings that a host without systemd needs."""


class Service:
    """The libvirtd of one handler; all that it writes is below two directories."""

    def __init__(self, handler: str, state: Path, root: Path, supervisor: Supervisor) -> None:
        """Name it; nothing is started.

        Args:
            handler: whose it is.
            state: for what dies with the boot.
            root: for what QEMU was found to be capable of, which takes seconds to find out.
            supervisor: executes it.
        """
        self._state = state / "libvirt"
        self._root = root / "libvirt"
        self._supervisor = supervisor
        self._process_id = ProcessId(f"libvirtd-{handler}")
        self._lock = asyncio.Lock()
        self._place = -1
        self.run = self._state / "run"

    def inside(self, path: Path) -> Path:
        """Return how libvirtd and QEMU name a path below `run`: always short enough for a socket."""
        return _INSIDE / path.relative_to(self.run)

    def emulator_log(self, name: str) -> Path:
        """Return what libvirt writes for a machine and never removes."""
        return self._state / "log" / "qemu" / f"{name}.log"

    def hypervisor(self) -> Hypervisor:
        """Return the connection to it, which is opened at the first use."""
        self.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._place < 0:
            self._place = os.open(self.run, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        socket = f"/proc/self/fd/{self._place}/libvirt-sock"
        return Hypervisor(f"qemu:///system?socket={socket}")

    async def ensure(self, hypervisor: Hypervisor) -> None:
        """See to it that it runs and answers.

        Raises:
            Unavailable: it does not; the text has the end of what it said.
        """
        async with self._lock:
            deadline = asyncio.get_running_loop().time() + _STARTS_S
            starts = 0
            while True:
                if not await self._is_alive() and starts < _STARTS:
                    starts += 1
                    await self._start()
                try:
                    await hypervisor.open()
                except Unavailable as error:
                    gone = starts == _STARTS and not await self._is_alive()
                    if gone or asyncio.get_running_loop().time() > deadline:
                        said = self.said() or "nothing"
                        raise Unavailable(f"{error}; libvirtd said: {said}") from error
                    await asyncio.sleep(_AGAIN_S)
                else:
                    return

    async def _is_alive(self) -> bool:
        for each in await self._supervisor.processes():
            if each.process_id == self._process_id:
                return each.exit is None
        return False

    async def _start(self) -> None:
        with contextlib.suppress(NotFound):
            await self._supervisor.forget(self._process_id)
        await asyncio.to_thread(self._write)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        log = os.open(self._state / "libvirtd.log", flags, 0o600)
        try:
            program = shutil.which("libvirtd") or "/usr/sbin/libvirtd"
            plan = child.plan("libvirtd", str(self._state), program, log="fd:0")
            labels = {"kind": "libvirtd"}
            with contextlib.suppress(AlreadyExists):
                launched = await self._supervisor.execute(
                    self._process_id, plan, fds=[log], labels=labels
                )
                os.close(launched.pidfd)
        finally:
            os.close(log)

    def _write(self) -> None:
        cache = self._root / "cache"
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        own = self._state / "cache"
        if not own.is_symlink():
            own.symlink_to(cache, target_is_directory=True)
        for stale in ("libvirtd.pid", "qemu/driver.pid", "libvirt-sock"):
            (self.run / stale).unlink(missing_ok=True)
        config = self._state / "etc"
        config.mkdir(mode=0o700, exist_ok=True)
        (self._state / "libvirtd.conf").write_text(_CONFIG)
        (config / "qemu.conf").write_text(_QEMU_CONFIG)

    def said(self) -> str:
        """Return the end of what libvirtd has written."""
        try:
            return (self._state / "libvirtd.log").read_text(errors="replace").strip()[-1000:]
        except OSError:
            return ""

    async def stop(self) -> None:
        """End it; machines would go on without it, so it is asked only when there are none."""
        async with self._lock:
            if await self._is_alive():
                await self._end(signals.SIGTERM)
            if await self._is_alive():
                await self._end(signals.SIGKILL)
            with contextlib.suppress(NotFound):
                await self._supervisor.forget(self._process_id)

    async def _end(self, signal: int) -> None:
        try:
            await self._supervisor.kill(self._process_id, signal)
            async with asyncio.timeout(_ENDS_S):
                await self._supervisor.wait(self._process_id)
        except NotFound:
            _log.debug("libvirtd is gone already")
        except TimeoutError:
            _log.warning("libvirtd does not end by signal %d", signal)

    def close(self) -> None:
        """Let go of the directory."""
        if self._place >= 0:
            os.close(self._place)
            self._place = -1
