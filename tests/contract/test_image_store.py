"""The content store keeps the contract of an image store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from polypod.plugin.images import Image, ImageContext, ImageStore, PullProgress
from polypod.testing import image_store_suite
from polypod.testing.image_store_suite import Known
from polypod.testing.suite import Outcome
from polypod_image.from_host import ImageSettings, build
from polypod_image.plugin import plugin

pytestmark = pytest.mark.needs_root


class ContentStoreSubject:
    """An `ImageSubject`: the content store, filled from two archives."""

    type = plugin.polypod_image_stores()[0]
    exceptions: Mapping[str, str] = {}
    known = (
        Known("localhost/one:v1", "/etc/one", b"content of one\n"),
        Known("localhost/two:v2", "/srv/data/two", b"content of two\n"),
    )

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        for number, each in enumerate(self.known):
            file = directory / f"{number}.txt"
            file.write_bytes(each.content)
            settings = ImageSettings(name=each.tag, files=[(file, each.file)])
            build([], directory / f"{number}.tar", settings)

    async def open(self) -> ImageStore:
        """Open it on the same directory as before."""
        context = ImageContext("content", {}, self._directory / "root", self._directory / "state")
        return await self.type.open(context)

    async def add(
        self, store: ImageStore, number: int, progress: Callable[[PullProgress], None], /
    ) -> Image:
        """Load its archive."""
        (image,) = await store.load(self._directory / f"{number}.tar", progress=progress)
        return image


@pytest.mark.parametrize("check", image_store_suite.CHECKS, ids=lambda check: check.__name__)
async def test_content_store(check, tmp_path):
    verdict = await image_store_suite.run_check(check, ContentStoreSubject(tmp_path))
    if verdict.outcome is Outcome.NOT_APPLICABLE:
        pytest.skip(verdict.detail)
    assert verdict.outcome is Outcome.PASSED, verdict.detail
