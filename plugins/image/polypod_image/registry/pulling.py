"""PullImage from a registry, shared: equal pulls are one pull with several waiters.

Who is cancelled lets go of its share; the last one ends the work, and nothing of it stays.

Spec:
    cri.md A.2, PullImage. Reliability I11.
"""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass, field
from typing import Final, Protocol

from polypod.plugin.errors import BackendError, NotFound, ResourceExhausted, Unavailable
from polypod.plugin.images import Image, Progress, PullProgress
from polypod.plugin.requests import Auth
from polypod_image.inventory import Inventory
from polypod_image.references import LOCALHOST, Reference
from polypod_image.registry.client import RegistryClient
from polypod_image.registry.credentials import credential_of
from polypod_image.registry.hosts import has_rule, plan
from polypod_image.registry.job import Job, Workshop
from polypod_image.registry.landing import in_thread
from polypod_image.registry.settings import PullOptions
from polypod_image.registry.tokens import Tokens
from polypod_image.registry.transport import Transport

_FULL: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM))
Key = tuple[str, Auth | None]


class After(Protocol):
    """What the store does behind a pull."""

    def __call__(self, *, whole: bool) -> None:
        """Do it; ``whole`` tells whether the image came."""


@dataclass(slots=True)
class _Share:
    """One pull that several callers wait for."""

    task: asyncio.Task[Image]
    waiters: int = 0
    listeners: list[Progress] = field(default_factory=list)


class Puller:
    """Pulls for one content store."""

    def __init__(self, inventory: Inventory, options: PullOptions, after: After) -> None:
        """Prepare; nothing is opened before the first pull.

        Args:
            inventory: of the store.
            options: of the configuration.
            after: told when a pull has ended and holds nothing any more.
        """
        self._after = after
        self._options = options
        self._workshop = Workshop(inventory, options)
        self._tokens = Tokens(options.realms)
        self._shares: dict[Key, _Share] = {}
        self._tasks: set[asyncio.Task[Image]] = set()
        self._closed = False

    def reload(self, options: PullOptions) -> None:
        """Take other options for the pulls that begin from now on."""
        self._options = options
        self._workshop.reload(options)
        self._tokens = Tokens(options.realms)

    async def pull(
        self, reference: Reference, auth: Auth | None, progress: Progress | None
    ) -> Image:
        """Bring an image into the store.

        Raises:
            NotFound: the registry has no such image, or none for this host.
            BackendError: the registry refuses, lies, or cannot be reached (``RegistryUnavailable: …``).
            InvalidArgument: a document, a layer or a ``hosts.toml`` is malformed.
            Unsupported: no container image, or one that this store cannot unpack.
            ResourceExhausted: no space.
            Unavailable: the store is closing.
        """
        if self._closed:
            raise Unavailable("the image store is closing")
        if reference.domain == LOCALHOST and not has_rule(self._options.hosts_dir, LOCALHOST):
            return self._made_here(reference)
        key = (str(reference), auth)
        share = self._shares.get(key)
        if share is None:
            share = self._shares[key] = self._begin(key, reference, auth)
        share.waiters += 1
        if progress is not None:
            share.listeners.append(progress)
        try:
            return await asyncio.shield(share.task)
        except asyncio.CancelledError:
            if share.task.cancelled():
                raise Unavailable("the image store was closed during the pull") from None
            raise
        finally:
            share.waiters -= 1
            if progress is not None:
                share.listeners.remove(progress)
            if not share.waiters and not share.task.done():
                self._shares.pop(key, None)
                share.task.cancel()

    def _made_here(self, reference: Reference) -> Image:
        """Return an image that was made on this host: no registry is called ``localhost`` by itself."""
        image = self._workshop.inventory.named(reference)
        if image is None:
            raise NotFound(
                f"{reference}: not found: {LOCALHOST}/… is what images made on this host are called, and "
                "this one is not here; `polypod image load` imports archives"
            )
        return image

    async def idle(self) -> None:
        """Return when nothing is under way, not even what was cancelled."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Cancel what is under way and wait until it is gone."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await self.idle()
        self._workshop.close()

    def _begin(self, key: Key, reference: Reference, auth: Auth | None) -> _Share:
        listeners: list[Progress] = []

        def tell(step: PullProgress) -> None:
            for listener in tuple(listeners):
                listener(step)

        task = asyncio.create_task(self._pull(reference, auth, tell))
        share = _Share(task, listeners=listeners)
        self._tasks.add(task)

        def ended(done: asyncio.Task[Image]) -> None:
            self._tasks.discard(done)
            if self._shares.get(key) is share:
                del self._shares[key]
            # The exception is looked at here, too: every waiter may have left.
            self._after(whole=not done.cancelled() and done.exception() is None)

        task.add_done_callback(ended)
        return share

    async def _pull(self, reference: Reference, auth: Auth | None, progress: Progress) -> Image:
        inventory = self._workshop.inventory
        try:
            credential = credential_of(auth, reference.domain)
            hosts = await in_thread(
                self._workshop.writing, plan, self._options.hosts_dir, reference.domain
            )
            with inventory.lease() as lease:
                async with Transport(self._options.progress_timeout_s) as transport:
                    client = RegistryClient(
                        hosts,
                        reference,
                        credential,
                        transport,
                        self._tokens,
                        self._options.attempts,
                    )
                    return await Job(self._workshop, client, reference, lease, progress).run()
        except OSError as error:
            kind = ResourceExhausted if error.errno in _FULL else BackendError
            raise kind(f"{reference}: {error.strerror or error}") from error
