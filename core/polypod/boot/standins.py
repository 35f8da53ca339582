"""What stands where a network or an image store could not be opened: it says why, whoever asks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from polypod.plugin.errors import FailedPrecondition
from polypod.plugin.ids import ContainerId, ImageId, SandboxId
from polypod.plugin.images import FilesystemUsage, Image, Progress
from polypod.plugin.network import Attachment, AttachRequest, NetworkStatus
from polypod.plugin.requests import Auth
from polypod.plugin.rootfs import Rootfs, RootfsForm


class NoNetwork:
    """Implements `polypod.plugin.network.Network` by refusing."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    async def attach(self, request: AttachRequest, /) -> Attachment:
        """Refuse: FailedPrecondition with the reason."""
        raise FailedPrecondition(
            f"sandbox {request.sandbox_id}: there is no network: {self._reason}"
        )

    async def detach(self, sandbox_id: SandboxId, attachment: Attachment | None, /) -> None:
        """Nothing was attached by this one; leases of an earlier one stay until it opens again."""

    async def attached(self) -> Sequence[SandboxId]:
        """Return nothing."""
        return ()

    async def configure(self, pod_cidrs: Sequence[str], /) -> None:
        """Have nothing to configure."""

    async def status(self) -> NetworkStatus:
        """Say why."""
        return NetworkStatus(ready=False, reason="NetworkUnusable", message=self._reason)

    async def close(self) -> None:
        """Have nothing to close."""


class NoImages:
    """Implements `polypod.plugin.images.ImageStore` by refusing; it lists no images."""

    def __init__(self, reason: str, root: Path) -> None:
        self._reason = reason
        self._root = root

    def _refusal(self) -> FailedPrecondition:
        return FailedPrecondition(f"there is no image store: {self._reason}")

    async def list(self) -> Sequence[Image]:
        """Refuse: an empty list would make the kubelet pull everything again."""
        raise self._refusal()

    async def find(self, reference: str, /) -> Image | None:
        """Refuse."""
        raise self._refusal()

    async def pull(
        self, reference: str, /, *, auth: Auth | None = None, progress: Progress | None = None
    ) -> Image:
        """Refuse."""
        raise self._refusal()

    async def load(
        self, source: Path, /, *, names: Sequence[str] = (), progress: Progress | None = None
    ) -> Sequence[Image]:
        """Refuse."""
        raise self._refusal()

    async def remove(self, image_id: ImageId, /) -> None:
        """Refuse."""
        raise self._refusal()

    async def prepare(
        self, container_id: ContainerId, image_id: ImageId, form: RootfsForm, /
    ) -> Rootfs:
        """Refuse."""
        raise self._refusal()

    async def image_file(self, image_id: ImageId, path: str, limit: int, /) -> bytes | None:
        """Refuse."""
        raise self._refusal()

    async def release(self, container_id: ContainerId, /) -> None:
        """Have nothing to release."""

    async def prepared(self) -> Sequence[ContainerId]:
        """Return nothing."""
        return ()

    async def writable_usage(self, container_id: ContainerId, /) -> FilesystemUsage | None:
        """Know nothing."""
        return None

    async def filesystem_usage(self) -> FilesystemUsage:
        """Return an empty store: the kubelet asks before any image exists."""
        return FilesystemUsage(time.time_ns(), self._root, 0, 0)

    async def close(self) -> None:
        """Have nothing to close."""
