"""`polypod.plugin.network.Network` by CNI.

The note is written before the first plugin is executed and removed after the last DEL succeeded: from there
on nothing that a plugin may hold can be forgotten, whoever is killed in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from polypod.plugin.errors import BackendError, PolypodError
from polypod.plugin.ids import SandboxId
from polypod.plugin.network import (
    Attachment,
    AttachRequest,
    Network,
    NetworkContext,
    NetworkStatus,
)
from polypod_network import links, transport
from polypod_network.cni import arguments, results
from polypod_network.cni.chain import Chain
from polypod_network.cni.configuration import Configurations, NetworkList
from polypod_network.cni.notes import Note, Notes
from polypod_network.cni.options import parse
from polypod_network.cni.plugins import Plugins

_log = logging.getLogger(__name__)
INTERFACE = "eth0"
_STATUS_S = 10.0
"""How long an answer of STATUS holds: a kubelet asks every five seconds."""
NOT_READY = "NetworkPluginNotReady"
"""The reason under which kubelets know it."""


class CniNetwork:
    """Sandboxes attached by the plugins of the first configuration of a directory."""

    def __init__(self, context: NetworkContext) -> None:
        self._options = parse(context.options)
        self._notes = Notes(context.root / "attachments")
        self._configurations = Configurations(self._options.conf_dir)
        self._chain = Chain(Plugins(self._options.bin_dirs, self._options.timeout_s))
        self._cidrs_file = context.root / "pod-cidrs.json"
        self._pod_cidrs = _read_cidrs(self._cidrs_file)
        self._status: tuple[float, NetworkList, NetworkStatus] | None = None
        self._collecting: asyncio.Task[None] | None = None

    async def open(self) -> CniNetwork:
        """Begin to collect what earlier servers left with the plugins; attaches wait for that."""
        if self._options.gc:
            self._collecting = asyncio.create_task(self._collect())
        return self

    async def attach(self, request: AttachRequest, /) -> Attachment:
        """See `polypod.plugin.network.Network.attach`."""
        if request.path is None:
            raise BackendError(f"sandbox {request.sandbox_id}: CNI needs its namespace as a path")
        await self._collected()
        found = await self._still_there(request)
        if found is not None:
            return found
        network = self._configurations.current()
        self._chain.find_plugins(network)
        note = Note(
            sandbox_id=request.sandbox_id,
            network=network,
            interface=INTERFACE,
            netns=str(request.path),
            arguments=arguments.cni_args(request),
            capability_arguments=arguments.capability_arguments(request, self._pod_cidrs),
        )
        _warn_of_ports(note)
        _bring_up_loopback(request.netlink)
        try:
            await _off_loop(self._notes.write, note)
            return await self._add(note)
        except BaseException as failure:
            await self._undo(note, failure)
            raise

    async def detach(self, sandbox_id: SandboxId, _attachment: Attachment | None, /) -> None:
        """See `polypod.plugin.network.Network.detach`; the note says all that is needed."""
        if not self._notes.has(sandbox_id):
            return
        await self._collected()
        note = self._note(sandbox_id)
        await self._delete_and_forget(_without_dead_namespace(note))

    async def check(self, sandbox_id: SandboxId, /) -> None:
        """Have the plugins look whether a sandbox is attached as they left it (CNI's CHECK).

        Raises:
            PolypodError: it is not, or it was never attached.
        """
        if not self._notes.has(sandbox_id):
            raise BackendError(f"sandbox {sandbox_id} is not attached")
        note = self._note(sandbox_id)
        if note.result is None:
            raise BackendError(f"sandbox {sandbox_id} was not attached to the end")
        await self._chain.check(note)

    async def attached(self) -> Sequence[SandboxId]:
        """See `polypod.plugin.network.Network.attached`."""
        return self._notes.sandboxes()

    async def configure(self, pod_cidrs: Sequence[str], /) -> None:
        """Keep the node's pod CIDRs for plugins with the capability ``ipRanges``.

        A kubelet says them once, so they outlive this process.
        """
        cidrs = arguments.check_cidrs(pod_cidrs)
        if cidrs and cidrs != self._pod_cidrs:
            self._cidrs_file.write_text(json.dumps(cidrs))
            self._pod_cidrs = cidrs

    async def status(self) -> NetworkStatus:
        """See `polypod.plugin.network.Network.status`."""
        try:
            network = self._configurations.current()
        except PolypodError as error:
            return NetworkStatus(ready=False, reason=NOT_READY, message=str(error))
        if self._status is not None and self._status[1] is network:
            asked, _, answer = self._status
            if time.monotonic() - asked < _STATUS_S and answer.ready:
                return answer
        try:
            await self._chain.status(network)
            answer = NetworkStatus(ready=True)
        except PolypodError as error:
            answer = NetworkStatus(ready=False, reason=NOT_READY, message=str(error))
        self._status = (time.monotonic(), network, answer)
        return answer

    async def close(self) -> None:
        """See `polypod.plugin.network.Network.close`."""
        collecting, self._collecting = self._collecting, None
        if collecting is not None:
            collecting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await collecting

    async def _add(self, note: Note) -> Attachment:
        result = await self._chain.add(note)
        try:
            ips = results.addresses(result, note.interface)
        except ValueError as error:
            raise BackendError(f"network {note.network.name!r}: result of ADD: {error}") from error
        if not ips:
            raise BackendError(
                f"network {note.network.name!r}: ADD gave {note.interface} no address: {result}"
            )
        await _off_loop(self._notes.write, replace(note, result=result))
        return _attachment(note, ips, result)

    async def _undo(self, note: Note, failure: BaseException) -> None:
        """Take back a failed ADD; if that fails too the note stays, and `detach` tries again."""
        undoing = asyncio.ensure_future(self._delete_and_forget(note))
        try:
            await asyncio.shield(undoing)
        except asyncio.CancelledError:
            await asyncio.gather(undoing, return_exceptions=True)
            raise
        except (PolypodError, OSError) as error:
            _log.warning("sandbox %s: undoing a failed ADD failed: %s", note.sandbox_id, error)
            failure.add_note(f"taking it back failed, too, and will be tried again: {error}")

    async def _delete_and_forget(self, note: Note) -> None:
        await self._chain.delete(note)
        await _off_loop(self._notes.remove, note.sandbox_id)

    async def _still_there(self, request: AttachRequest) -> Attachment | None:
        """Return what a sandbox already has, if CHECK confirms it; take it back otherwise."""
        if not self._notes.has(request.sandbox_id):
            return None
        note = self._note(request.sandbox_id)
        if note.result is not None and note.netns == str(request.path):
            try:
                await self._chain.check(note)
                ips = results.addresses(note.result, note.interface)
                return _attachment(note, ips, note.result)
            except (PolypodError, ValueError) as error:
                _log.warning("sandbox %s is attached again: %s", request.sandbox_id, error)
        await self._delete_and_forget(_without_dead_namespace(note))
        return None

    def _note(self, sandbox_id: SandboxId) -> Note:
        """Read a note; in place of a damaged one, the best that is known: today's network."""
        try:
            return self._notes.read(sandbox_id)
        except ValueError as error:
            _log.warning("sandbox %s: %s; today's configuration is used", sandbox_id, error)
            identity = f"IgnoreUnknown=1;K8S_POD_INFRA_CONTAINER_ID={sandbox_id}"
            return Note(sandbox_id, self._configurations.current(), INTERFACE, "", identity)

    async def _collect(self) -> None:
        try:
            network = self._configurations.current()
            valid = [(each, INTERFACE) for each in self._notes.sandboxes()]
            await self._chain.collect(network, valid)
        except (PolypodError, OSError) as error:
            _log.warning("CNI garbage collection: %s", error)

    async def _collected(self) -> None:
        """Wait for the collection: an attachment made meanwhile would be collected."""
        if self._collecting is not None:
            await asyncio.wait([self._collecting])


async def _off_loop(function: Callable[..., None], *arguments: object) -> None:
    """Wait for the disk without holding up everybody else; a cancelled caller waits, too."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


def _attachment(note: Note, ips: tuple[str, ...], result: Mapping[str, object]) -> Attachment:
    return Attachment(
        ips=ips,
        result={"network": note.network.name, "interface": note.interface, "cni": dict(result)},
    )


def _without_dead_namespace(note: Note) -> Note:
    """Return the note for a DEL: of a namespace that is gone plugins get no path (SPEC.md, DEL)."""
    try:
        alive = os.stat(note.netns).st_dev == os.stat("/proc/self/ns/net").st_dev
    except OSError:
        alive = False
    return note if alive else replace(note, netns="")


def _bring_up_loopback(netlink: int) -> None:
    with socket.socket(fileno=os.dup(netlink)) as sock:
        transport.prepare(sock)
        transport.send_batch(sock, [links.loopback_up()])


def _warn_of_ports(note: Note) -> None:
    for name in ("portMappings", "bandwidth"):
        if name in note.capability_arguments and not note.network.wants(name):
            # Not refused: some networks learn of host ports from the cluster, not from us.
            _log.warning(
                "sandbox %s: no plugin of network %s asks for %s (%s)",
                note.sandbox_id,
                note.network.name,
                name,
                note.network.source,
            )


def _read_cidrs(path: Path) -> tuple[str, ...]:
    try:
        return arguments.check_cidrs(json.loads(path.read_text()))
    except FileNotFoundError:
        return ()
    except (ValueError, TypeError, PolypodError) as error:
        _log.warning("%s is damaged, pod CIDRs are unknown until they come again: %s", path, error)
        return ()


async def open_cni(context: NetworkContext) -> Network:
    """Open the network; the descriptor's ``open``."""
    return await CniNetwork(context).open()
