"""A blob on its way into the content store: hashed and written piece by piece, named when it is whole.

Spec:
    Reliability I6: nothing has a name before its size and digest are known to be right.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Final, TypeVar

from polypod.plugin.ids import Digest
from polypod_image.digests import hasher, split

T = TypeVar("T")
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


async def in_thread(
    pool: Executor,
    work: Callable[..., T],
    *arguments: object,
    abandon: Callable[[], None] = lambda: None,
) -> T:
    """Run something that blocks; a cancelled caller stays until it has ended.

    So nothing that a thread still uses is closed, unpinned or deleted below it.

    Args:
        pool: whose thread it is.
        work: what blocks.
        arguments: for it.
        abandon: asks the work to end soon; called when the caller is cancelled.
    """
    future = asyncio.get_running_loop().run_in_executor(pool, work, *arguments)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        abandon()
        while not future.done():
            try:
                await asyncio.wait({future})
            except asyncio.CancelledError:
                continue
        if not future.cancelled():
            future.exception()  # it was looked at
        raise


class Landing:
    """One blob that arrives."""

    def __init__(self, work: Path, digest: Digest, size: int, pool: Executor) -> None:
        """Prepare; `open` makes the file.

        Args:
            work: directory for what is unfinished.
            digest: what it must have.
            size: bytes that it must have.
            pool: where writing and hashing is done.
        """
        self.digest = digest
        self.size = size
        self.offset = 0
        """Bytes that are written or on their way."""
        self.resumed = False
        """It was put together of several answers."""
        self._fresh = work / f"blob-{secrets.token_hex(12)}"
        self._hash = hasher(digest)
        self._pool = pool
        self._file = -1
        self._writing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Make the file."""
        self._file = os.open(self._fresh, _CREATE, 0o600)

    async def write(self, pieces: Sequence[bytes]) -> None:
        """Take some pieces; they are written while the next ones are awaited."""
        await self._settle()
        self.offset += sum(map(len, pieces))
        self._writing = asyncio.create_task(in_thread(self._pool, self._take, pieces))

    async def restart(self) -> None:
        """Forget what came so far."""
        await self._settle()
        await in_thread(self._pool, self._empty)
        self._hash = hasher(self.digest)
        self.offset = 0
        self.resumed = False

    async def is_right(self) -> bool:
        """Return whether all has come and has the digest."""
        await self._settle()
        return self.offset == self.size and self._hash.hexdigest() == split(self.digest)[1]

    async def name(self, land: Callable[[Path, Digest], None]) -> None:
        """Make it durable and hand it over under its name."""
        await self._settle()
        await in_thread(self._pool, self._land, land)

    async def close(self) -> None:
        """Close the file; delete it unless it has its name."""
        if self._file < 0:
            return
        try:
            await self._settle()
        finally:
            await in_thread(self._pool, self._drop)

    async def _settle(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                while not writing.done():
                    try:
                        await asyncio.wait({writing})
                    except asyncio.CancelledError:
                        continue
                raise

    def _take(self, pieces: Sequence[bytes]) -> None:
        for piece in pieces:
            self._hash.update(piece)
            view = memoryview(piece)
            while view:
                view = view[os.write(self._file, view) :]

    def _empty(self) -> None:
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)

    def _drop(self) -> None:
        os.close(self._file)
        self._file = -1
        self._fresh.unlink(missing_ok=True)

    def _land(self, land: Callable[[Path, Digest], None]) -> None:
        os.fdatasync(self._file)
        land(self._fresh, self.digest)
