"""libvirt, as far as pods need it: the one module that imports its binding.

Every call blocks, so it runs in threads of its own; a connection that broke is opened again at the next call.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import libvirt
import libvirt_qemu

from polypod.plugin import BackendError, Unavailable
from polypod_vm.domain import Disk, Domain, disk_xml, domain_xml

_T = TypeVar("_T")
_THREADS: Final = 8
_NETWORK_DEVICE: Final = {"driver": "virtio-net-pci", "netdev": "net0", "id": "nic0"}
_OUR_SLOT: Final = "0x1f"
"""The last one of the bus: libvirt, which does not know of ours, gives its own out from the first."""
_GONE: Final = frozenset([libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID])


def _say_nothing(_context: object, _error: object) -> None:
    """Libvirt writes every error to stderr by itself; each is raised as well."""


libvirt.registerErrorHandler(_say_nothing, None)


class Hypervisor:
    """One libvirt, by its URI."""

    def __init__(self, uri: str) -> None:
        """Nothing is opened yet."""
        self._uri = uri
        self._connection: Any = None
        self._threads = ThreadPoolExecutor(_THREADS, "libvirt")

    async def open(self) -> str:
        """Connect, if that is not so; return the version of the emulator.

        Raises:
            Unavailable: nobody answers there.
        """
        return await self._run(self._version)

    async def create(
        self, domain: Domain, tap: int, mac: str, place: Callable[[], None] | None = None
    ) -> None:
        """Start a machine; with a tap (≥ 0) its interface is there before the guest looks for it.

        ``place`` is called before it runs, and may raise.

        Raises:
            BackendError: libvirt or QEMU refused; nothing is left.
        """
        await self._run(self._create, domain, tap, mac, place)

    async def destroy(self, name: str) -> None:
        """End a machine; one that is gone is fine."""
        await self._run(self._destroy, name)

    async def attach(self, name: str, disk: Disk) -> None:
        """Put a disk into a running machine."""
        await self._run(self._attach, name, disk)

    async def is_running(self, name: str) -> bool:
        """Tell whether a machine is there."""
        return await self._run(self._is_running, name)

    async def close(self) -> None:
        """Disconnect; machines go on."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(libvirt.libvirtError):
                await asyncio.to_thread(connection.close)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[..., _T], *arguments: object) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._guarded, work, *arguments)

    def _guarded(self, work: Callable[..., _T], *arguments: object) -> _T:
        try:
            return work(*arguments)
        except libvirt.libvirtError as error:
            if self._connection is None or not self._alive():
                self._connection = None
                raise Unavailable(f"libvirt {self._uri}: {error}") from error
            raise BackendError(f"libvirt: {error}") from error

    def _alive(self) -> bool:
        try:
            return bool(self._connection.isAlive())
        except libvirt.libvirtError:
            return False

    def _open(self) -> Any:  # noqa: ANN401 - the binding has no types
        if self._connection is None or not self._alive():
            self._connection = libvirt.open(self._uri)
        return self._connection

    def _version(self) -> str:
        connection = self._open()
        return f"{connection.getType()} {connection.getVersion()}"

    def _create(self, domain: Domain, tap: int, mac: str, place: Callable[[], None] | None) -> None:
        made = self._open().createXML(domain_xml(domain), libvirt.VIR_DOMAIN_START_PAUSED)
        try:
            if tap >= 0:
                self._add_network(made, tap, mac)
            if place is not None:
                place()
            made.resume()
        except BaseException:
            with contextlib.suppress(libvirt.libvirtError):
                made.destroy()
            raise

    @staticmethod
    def _add_network(made: Any, tap: int, mac: str) -> None:  # noqa: ANN401
        """By QEMU's own monitor: libvirt takes taps by name only, and ours is in another namespace."""
        commands: tuple[tuple[dict[str, object], list[int]], ...] = (
            ({"execute": "getfd", "arguments": {"fdname": "tap0"}}, [tap]),
            (_command("netdev_add", type="tap", id="net0", fd="tap0"), []),
            (_command("device_add", addr=_OUR_SLOT, mac=mac, **_NETWORK_DEVICE), []),
        )
        for command, fds in commands:
            text = json.dumps(command)
            said, _fds = libvirt_qemu.qemuMonitorCommandWithFiles(made, text, fds, 0)
            error = json.loads(said).get("error")
            if error is not None:
                raise BackendError(f"QEMU: {command['execute']}: {error.get('desc')}")

    def _attach(self, name: str, disk: Disk) -> None:
        if not disk.path.is_file():
            raise BackendError(f"{disk.path}: no such image")
        self._open().lookupByName(name).attachDevice(disk_xml(disk))

    def _destroy(self, name: str) -> None:
        try:
            self._open().lookupByName(name).destroy()
        except libvirt.libvirtError as error:
            if error.get_error_code() not in _GONE:
                raise

    def _is_running(self, name: str) -> bool:
        try:
            return bool(self._open().lookupByName(name).isActive())
        except libvirt.libvirtError as error:
            if error.get_error_code() in _GONE:
                return False
            raise


def _command(name: str, **arguments: object) -> dict[str, object]:
    return {"execute": name, "arguments": arguments}
