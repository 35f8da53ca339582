"""The entry point: offers the store ``content`` and the command ``image from-host``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

from polypod.plugin import (
    CommandType,
    Hooks,
    ImageContext,
    ImageStore,
    ImageStoreType,
    RootfsForm,
    hookimpl,
    override,
)


class ImagePlugin(Hooks):
    """Offers ``content`` and ``image-from-host``."""

    @override
    @hookimpl
    def polypod_image_stores(self) -> Sequence[ImageStoreType]:
        """Offer the content store."""
        return (
            ImageStoreType(
                name="content",
                summary="blobs by digest, unpacked once per layer, as overlay, directory or block image",
                open=_open,
                forms=_forms(),
                unusable="" if os.geteuid() == 0 else "only root can unpack owners and devices",
            ),
        )

    @override
    @hookimpl
    def polypod_commands(self) -> Sequence[CommandType]:
        """Offer ``polypod image from-host``."""
        from polypod_image.from_host import configure, run

        return (
            CommandType(
                name="image-from-host",
                summary="build a small image of programs of this host and their libraries",
                configure=configure,
                run=run,
            ),
        )


def _forms() -> tuple[RootfsForm, ...]:
    """A block image is made by mkfs.erofs, where there is one (package erofs-utils)."""
    block = (RootfsForm.BLOCK,) if shutil.which("mkfs.erofs") else ()
    return RootfsForm.OVERLAY, RootfsForm.DIRECTORY, *block


async def _open(context: ImageContext) -> ImageStore:
    # The store's own imports cost a server that does not use it nothing.
    from polypod_image.options import parse
    from polypod_image.store import ContentStore

    store = ContentStore(context, parse(context.options))
    await store.open()
    return store


plugin = ImagePlugin()
