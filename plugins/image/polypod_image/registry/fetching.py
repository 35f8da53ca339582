"""Bring a layer's blob from the endpoints of a registry into the content store.

Spec:
    distribution-spec "Pulling blobs": Range SHOULD be supported. Reliability I11, I12, F13.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final
from weakref import WeakValueDictionary

from polypod.plugin.ids import Digest
from polypod_image.documents import Descriptor
from polypod_image.inventory import Inventory
from polypod_image.pins import Lease
from polypod_image.registry.client import RegistryClient
from polypod_image.registry.failures import RETRIED, Kind, RequestFailed, told
from polypod_image.registry.hosts import Endpoint
from polypod_image.registry.landing import Landing, in_thread

PIECE: Final = 512 << 10
"""Bytes that are handed to a thread at a time."""
_ENOUGH: Final = 1 << 20
"""Bytes after which a broken transfer counts as one that got on: its number of attempts begins anew."""

Told = Callable[[str, int], None]
"""Called with a stage and the bytes that are done."""


class Fetcher:
    """Fetches blobs of all pulls; one that two pulls want is fetched once."""

    def __init__(self, inventory: Inventory, pool: Executor, attempts: int) -> None:
        """Use the store's inventory.

        Args:
            inventory: takes the blobs.
            pool: where files are written.
            attempts: broken transfers in a row before a blob is given up.
        """
        self._inventory = inventory
        self._pool = pool
        self._attempts = attempts
        self._locks: WeakValueDictionary[Digest, asyncio.Lock] = WeakValueDictionary()

    async def fetch(
        self, lease: Lease, client: RegistryClient, descriptor: Descriptor, tell: Told
    ) -> None:
        """Make sure that a blob is in the store, and hold it.

        Raises:
            PolypodError: no endpoint gives it as it must be.
        """
        lock = self._locks.setdefault(descriptor.digest, asyncio.Lock())
        if lock.locked():
            tell("waiting", 0)
        async with lock:
            if await in_thread(self._pool, self._inventory.hold_blob, lease, descriptor):
                tell("present", descriptor.size)
                return
            tell("downloading", 0)
            landing = Landing(self._inventory.work, descriptor.digest, descriptor.size, self._pool)
            try:
                await landing.open()
                await self._fill(client, descriptor, landing, tell)
                await landing.name(self._inventory.land)
            finally:
                await landing.close()
            tell("downloaded", descriptor.size)

    async def _fill(
        self, client: RegistryClient, descriptor: Descriptor, landing: Landing, tell: Told
    ) -> None:
        """Fill a landing from one endpoint after the other.

        Raises:
            PolypodError: none of them can.
        """
        failures: list[RequestFailed] = []
        for endpoint in client.endpoints():
            try:
                await self._from(client, endpoint, descriptor, landing, tell)
            except RequestFailed as error:
                failures.append(error)
                if error.kind is Kind.LIES:
                    await landing.restart()
            else:
                return
        raise told(f"blob {descriptor.digest}", failures)

    async def _from(
        self,
        client: RegistryClient,
        endpoint: Endpoint,
        descriptor: Descriptor,
        landing: Landing,
        tell: Told,
    ) -> None:
        """Fill a landing from one endpoint, going on where a broken transfer stopped.

        Raises:
            RequestFailed: the last of several.
        """
        left, began = self._attempts, landing.offset
        while True:
            try:
                await self._once(client, endpoint, descriptor, landing, tell)
                if await landing.is_right():
                    return
                lie = RequestFailed(
                    Kind.LIES, f"{endpoint.origin}: the content has another digest or size"
                )
                if not landing.resumed:
                    raise lie
                # Pieces of two answers may not fit together although each was honest: once more, in one.
                await landing.restart()
                left = 1
            except RequestFailed as error:
                if error.kind not in RETRIED:
                    raise
                if landing.offset - began >= _ENOUGH:
                    left, began = self._attempts, landing.offset
                left -= 1
                if left <= 0:
                    raise
                await client.pause([error], self._attempts - left - 1)

    async def _once(
        self,
        client: RegistryClient,
        endpoint: Endpoint,
        descriptor: Descriptor,
        landing: Landing,
        tell: Told,
    ) -> None:
        """Take one answer as far as it goes; what came is kept even if it breaks off."""
        if landing.offset >= descriptor.size:
            return
        async with client.blob(endpoint, descriptor, landing.offset) as (answer, begins):
            if begins != landing.offset:
                await landing.restart()
            landing.resumed = landing.offset > 0
            waiting, count = list[bytes](), 0
            try:
                async for piece in answer.pieces():
                    waiting.append(piece)
                    count += len(piece)
                    if landing.offset + count > descriptor.size:
                        waiting.clear()
                        raise RequestFailed(
                            Kind.LIES,
                            f"{answer.where}: more than the {descriptor.size} bytes of its descriptor",
                        )
                    if count >= PIECE:
                        await landing.write(waiting)
                        waiting, count = [], 0
                        tell("downloading", landing.offset)
            finally:
                if waiting:
                    await landing.write(waiting)
            tell("downloading", landing.offset)
        if landing.offset < descriptor.size:
            # Chunked, or closed without a length: nothing says where it should have ended but we.
            raise RequestFailed(
                Kind.UNREACHABLE,
                f"{answer.where}: ended after {landing.offset} of {descriptor.size} bytes",
            )
