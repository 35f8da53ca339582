"""A network that takes namespaces as paths: each is bound below ``/run/netns`` for as long as it needs it.

The path lives from before `attach` until `detach` has succeeded (reliability.md: a plugin that is asked again
finds what it was given). A marker in the state directory is made before each mount: whoever is killed in
between, `attached` names the sandbox, and recovery detaches it.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from polypod.plugin.ids import SandboxId
from polypod.plugin.network import Attachment, AttachRequest, Network, NetworkStatus

NETNS = Path("/run/netns")
"""Where everybody looks for network namespaces by name; ``ip netns`` lists them."""
_PREFIX = "polypod-"
_MS_BIND = 4096
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8

_libc = ctypes.CDLL(None, use_errno=True)


class NamespacePaths:
    """Implements `polypod.plugin.network.Network` around one whose type `needs_path`."""

    def __init__(self, network: Network, markers: Path, directory: Path = NETNS) -> None:
        """Wrap it.

        Args:
            network: the one that does the work.
            markers: own directory, below ``server.state``; made if missing.
            directory: where namespaces are bound.
        """
        self._network = network
        self._markers = markers
        self._directory = directory
        markers.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def attach(self, request: AttachRequest, /) -> Attachment:
        """Bind the namespace, then attach; after a failed attach that holds nothing, unbind."""
        sandbox_id = request.sandbox_id
        (self._markers / sandbox_id).touch(mode=0o600)
        path = self.path(sandbox_id)
        try:
            bind(request.namespace, path)
            return await self._network.attach(replace(request, path=path))
        except BaseException:
            if sandbox_id not in await self._network.attached():
                await self._drop(sandbox_id)
            raise

    async def detach(self, sandbox_id: SandboxId, attachment: Attachment | None, /) -> None:
        """Detach, then unbind."""
        await self._network.detach(sandbox_id, attachment)
        await self._drop(sandbox_id)

    async def attached(self) -> Sequence[SandboxId]:
        """Return who holds something of the network, or a path."""
        held = await self._network.attached()
        bound = {SandboxId(each.name) for each in self._markers.iterdir()}
        return [*held, *sorted(bound - set(held))]

    async def configure(self, pod_cidrs: Sequence[str], /) -> None:
        """See `polypod.plugin.network.Network.configure`."""
        await self._network.configure(pod_cidrs)

    async def status(self) -> NetworkStatus:
        """See `polypod.plugin.network.Network.status`."""
        return await self._network.status()

    async def close(self) -> None:
        """See `polypod.plugin.network.Network.close`; the paths stay."""
        await self._network.close()

    async def destroy(self) -> None:
        """Take off the host what the network made for all pods, if it made something."""
        destroy = getattr(self._network, "destroy", None)
        if destroy is not None:
            await destroy()

    def path(self, sandbox_id: SandboxId) -> Path:
        """Return where a sandbox's namespace is bound."""
        return self._directory / f"{_PREFIX}{sandbox_id}"

    async def _drop(self, sandbox_id: SandboxId) -> None:
        await asyncio.shield(asyncio.to_thread(unbind, self.path(sandbox_id)))
        (self._markers / sandbox_id).unlink(missing_ok=True)


def bind(namespace: int, path: Path) -> None:
    """Bind a namespace at a path; one that is bound there already is replaced.

    Raises:
        OSError: it cannot be.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    unbind(path)
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    source = f"/proc/self/fd/{namespace}".encode()
    if _libc.mount(source, os.fsencode(path), None, ctypes.c_ulong(_MS_BIND), None):
        number = ctypes.get_errno()
        path.unlink()
        raise OSError(number, f"bind a network namespace at {path}: {os.strerror(number)}")


def unbind(path: Path) -> None:
    """Undo `bind`; a path that is not there is fine.

    Raises:
        OSError: it cannot be.
    """
    while path.exists():
        if not _libc.umount2(os.fsencode(path), _MNT_DETACH | _UMOUNT_NOFOLLOW):
            continue  # somebody may have bound it twice
        number = ctypes.get_errno()
        if number != errno.EINVAL:
            raise OSError(number, f"unmount {path}: {os.strerror(number)}")
        path.unlink(missing_ok=True)  # nothing is mounted there
