"""ImageService: one method per RPC: decode, one call, encode."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from polypod.api import decode, encode
from polypod.api.streams import pieces
from polypod.api.v1 import api_pb2 as pb
from polypod.api.v1 import api_pb2_grpc as rpc

if TYPE_CHECKING:
    from polypod.lifecycle.views import Lifecycle

Context = Any


class ImageService(rpc.ImageServiceServicer):
    """Images over the wire."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._heart = lifecycle

    @override
    async def ListImages(
        self, request: pb.ListImagesRequest, context: Context
    ) -> pb.ListImagesResponse:
        images = await self._heart.list_images(request.filter.image.image)
        return pb.ListImagesResponse(images=[encode.image(image) for image in images])

    @override
    async def StreamImages(
        self, request: pb.StreamImagesRequest, context: Context
    ) -> AsyncIterator[pb.StreamImagesResponse]:
        images = await self._heart.list_images(request.filter.image.image)
        async for piece in pieces(
            images, encode.image, lambda items: pb.StreamImagesResponse(images=items)
        ):
            yield piece

    @override
    async def ImageStatus(
        self, request: pb.ImageStatusRequest, context: Context
    ) -> pb.ImageStatusResponse:
        reference = decode.image_reference(request)
        image = await self._heart.image_status(reference)
        facts = dataclasses.asdict(image) if request.verbose and image is not None else {}
        # CRI has no word for progress; what is verbose may say anything.
        steps = self._heart.pull_progress(reference) if request.verbose else ()
        if steps:
            facts["pull"] = [dataclasses.asdict(each) for each in steps]
        found = encode.image(image) if image is not None else None
        return pb.ImageStatusResponse(image=found, info=encode.info(facts))

    @override
    async def PullImage(
        self, request: pb.PullImageRequest, context: Context
    ) -> pb.PullImageResponse:
        image = await self._heart.pull_image(decode.image_reference(request), decode.auth(request))
        return pb.PullImageResponse(image_ref=image.id)

    @override
    async def RemoveImage(
        self, request: pb.RemoveImageRequest, context: Context
    ) -> pb.RemoveImageResponse:
        await self._heart.remove_image(decode.image_reference(request))
        return pb.RemoveImageResponse()

    @override
    async def ImageFsInfo(
        self, request: pb.ImageFsInfoRequest, context: Context
    ) -> pb.ImageFsInfoResponse:
        images, written = await self._heart.image_filesystems()
        return pb.ImageFsInfoResponse(
            image_filesystems=[encode.filesystem(images)],
            container_filesystems=[encode.filesystem(written)],
        )
