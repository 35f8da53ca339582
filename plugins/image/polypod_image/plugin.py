"""The entry point: offers the store ``content`` and the commands of ``polypod image``."""

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
    """Offers ``content`` and the commands of ``polypod image``."""

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
        """Offer ``polypod image verify``, ``repair``, ``gc``, ``df``, ``from-host`` and ``explain``."""
        from polypod_image import commands, from_host
        from polypod_image.registry import command

        kept = (
            ("verify", "check blobs and layers against their digests and records"),
            ("repair", "drop what is damaged, make anew what can be made from blobs"),
            ("gc", "delete what no image and no container needs"),
            ("df", "tell what takes how much"),
        )
        return (
            *(
                CommandType(
                    name=f"image-{name}",
                    summary=summary,
                    configure=getattr(commands, f"configure_{name}"),
                    run=getattr(commands, name),
                )
                for name, summary in kept
            ),
            CommandType(
                name="image-from-host",
                summary="build a small image of programs of this host and their libraries",
                configure=from_host.configure,
                run=from_host.run,
            ),
            CommandType(
                name="image-explain",
                summary="tell every endpoint that a pull would ask, and what each would see",
                configure=command.configure,
                run=command.run,
            ),
        )


def _forms() -> tuple[RootfsForm, ...]:
    """Images of file systems are made by mkfs.erofs, where there is one (package erofs-utils)."""
    made = (RootfsForm.EROFS, RootfsForm.BLOCK) if shutil.which("mkfs.erofs") else ()
    return RootfsForm.OVERLAY, RootfsForm.DIRECTORY, *made


async def _open(context: ImageContext) -> ImageStore:
    # The store's own imports cost a server that does not use it nothing.
    from polypod_image.options import parse
    from polypod_image.store import ContentStore

    store = ContentStore(context, parse(context.options))
    await store.open()
    return store


plugin = ImagePlugin()
