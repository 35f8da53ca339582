"""An image store without a registry: images are a config and a few small files, given in code."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from polypod.plugin.errors import InvalidArgument, NotFound, Unsupported
from polypod.plugin.ids import ContainerId, Digest, ImageId
from polypod.plugin.images import (
    FilesystemUsage,
    Image,
    ImageConfig,
    ImageContext,
    ImageStore,
    ImageStoreType,
    Progress,
    PullProgress,
)
from polypod.plugin.requests import Auth
from polypod.plugin.rootfs import DirectoryRootfs, Rootfs, RootfsForm
from polypod.testing.faults import Faults

_NAME = re.compile(
    r"(?:[a-z0-9]+(?:[.-][a-z0-9]+)*(?::[0-9]+)?/)?"  # a host
    r"[a-z0-9]+(?:(?:[._/]|__|-+)[a-z0-9]+)*"  # a path
    r"(?::\w[\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"  # a tag, a digest
)
_HEX = re.compile(r"(?:sha256:)?([0-9a-f]{3,64})")
DEMO = "localhost/demo:latest"


@dataclass(frozen=True, slots=True)
class ImageSource:
    """What an image is made of: pull finds these under their names."""

    config: ImageConfig = field(default_factory=ImageConfig)
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Absolute path → content."""


DEMO_SOURCE = ImageSource(
    ImageConfig(env=("PATH=/bin",), cmd=("sh", "-c", "echo hello; sleep inf")),
    {"/etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n", "/etc/group": b"root:x:0:\n"},
)


@dataclass(slots=True)
class _Stored:
    id: ImageId
    source: ImageSource
    names: list[str]

    @property
    def digest(self) -> Digest:
        return Digest("sha256:" + hashlib.sha256(b"manifest " + self.id.encode()).hexdigest())

    @property
    def image(self) -> Image:
        repositories = sorted({name.rpartition(":")[0] for name in self.names})
        return Image(
            id=self.id,
            repo_tags=tuple(self.names),
            repo_digests=tuple(f"{each}@{self.digest}" for each in repositories),
            size_bytes=1 + sum(map(len, self.source.files.values())),
            config=self.source.config,
            manifest_digest=self.digest,
        )


class MemoryImageStore:
    """Implements `polypod.plugin.images.ImageStore`. A note below ``root`` lets it be reopened."""

    def __init__(
        self,
        root: Path,
        sources: Mapping[str, ImageSource] | None = None,
        *,
        faults: Faults | None = None,
    ) -> None:
        self.faults = faults or Faults()
        self.sources = dict(sources if sources is not None else {DEMO: DEMO_SOURCE})
        """Reference → what a pull of it brings."""
        self._root = root
        self._stored: dict[ImageId, _Stored] = {}  # newest last
        self._load_note()

    async def list(self) -> Sequence[Image]:
        """Return all images, newest first."""
        await self.faults.hit("list_images")
        return [each.image for each in reversed(self._stored.values())]

    async def find(self, reference: str, /) -> Image | None:
        """Return the image of an id, an id prefix, a tag or a digest; `InvalidArgument` as promised."""
        await self.faults.hit("find")
        prefix = _HEX.fullmatch(reference)
        if prefix is not None:
            found = self._by_prefix(reference, prefix[1])
            if found is not None:
                return found
        name, _, digest = tagged(reference).partition("@")
        for each in self._stored.values():
            if digest and each.digest == digest and reference in each.image.repo_digests:
                return each.image
            if not digest and name in each.names:
                return each.image
        return None

    def _by_prefix(self, reference: str, digits: str) -> Image | None:
        found = [each for each in self._stored.values() if each.id[7:].startswith(digits)]
        if len(found) > 1:
            raise InvalidArgument(
                f"image id {reference!r} fits {len(found)} images: write more of it"
            )
        return found[0].image if found else None

    async def pull(
        self, reference: str, /, *, auth: Auth | None = None, progress: Progress | None = None
    ) -> Image:
        """Take an image from `sources`."""
        del auth
        name = tagged(reference)
        await self.faults.hit("pull")
        source = self.sources.get(name)
        if source is None:
            raise NotFound(f"image {name!r}: this store knows {sorted(self.sources)} only")
        stored = self._store(name, source)
        if progress is not None:
            size = stored.image.size_bytes
            progress(PullProgress(stored.digest, "done", size, size))
        return stored.image

    async def load(
        self, source: Path, /, *, names: Sequence[str] = (), progress: Progress | None = None
    ) -> Sequence[Image]:
        """Unsupported: there is no archive format for what this store holds."""
        del names, progress
        raise Unsupported(f"{source}: the memory store imports no archives: use the content store")

    async def remove(self, image_id: ImageId, /) -> None:
        """Forget an image."""
        await self.faults.hit("remove_image")
        self._stored.pop(image_id, None)
        self._write_note()

    async def prepare(
        self, container_id: ContainerId, image_id: ImageId, form: RootfsForm, /
    ) -> Rootfs:
        """Write the image's files into a directory of the container's own."""
        await self.faults.hit("prepare")
        stored = self._stored.get(image_id)
        if stored is None:
            raise NotFound(f"image {image_id} is not in the store")
        if form is not RootfsForm.DIRECTORY:
            raise Unsupported(f"the memory store makes directories, not the form {form}")
        place = self._containers / container_id
        if not place.exists():
            await asyncio.to_thread(self._fill, place, stored.source)
        return DirectoryRootfs(place)

    def _fill(self, place: Path, source: ImageSource) -> None:
        fresh = place.with_name(f".{place.name}")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o755, parents=True)
        for path, data in source.files.items():
            file = fresh / _inside(path)[1:]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        fresh.rename(place)

    async def image_file(self, image_id: ImageId, path: str, limit: int, /) -> bytes | None:
        """Return a file of the image."""
        stored = self._stored.get(image_id)
        if stored is None:
            raise NotFound(f"image {image_id} is not in the store")
        data = stored.source.files.get(_inside(path))
        if data is not None and len(data) > limit:
            raise InvalidArgument(f"image {image_id}: {path} is larger than {limit} bytes")
        return data

    async def release(self, container_id: ContainerId, /) -> None:
        """Remove a container's directory."""
        await self.faults.hit("release")
        place = self._containers / container_id
        await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)

    async def prepared(self) -> Sequence[ContainerId]:
        """Return the containers that have a directory."""
        names = (each.name for each in self._containers.iterdir()) if self._has_any() else ()
        return [ContainerId(name) for name in names if not name.startswith(".")]

    async def writable_usage(self, container_id: ContainerId, /) -> FilesystemUsage | None:
        """Return what the container's directory takes: small enough to be counted on request."""
        place = self._containers / container_id
        if not place.exists():
            return None
        used, inodes = await asyncio.to_thread(_measure, place)
        return FilesystemUsage(time.time_ns(), self._root, used, inodes)

    async def filesystem_usage(self) -> FilesystemUsage:
        """Return what the images take."""
        used = sum(each.image.size_bytes for each in self._stored.values())
        return FilesystemUsage(time.time_ns(), self._root, used, len(self._stored))

    async def close(self) -> None:
        """There is no background work to stop."""
        return

    @property
    def _containers(self) -> Path:
        return self._root / "containers"

    def _has_any(self) -> bool:
        return self._containers.is_dir()

    def _store(self, name: str, source: ImageSource) -> _Stored:
        image_id = _image_id(source)
        for each in self._stored.values():
            if each.id != image_id and name in each.names:
                each.names.remove(name)
        stored = self._stored.setdefault(image_id, _Stored(image_id, source, []))
        if name not in stored.names:
            stored.names.append(name)
        self._write_note()
        return stored

    # The note

    def _write_note(self) -> None:
        note = [
            {
                "names": each.names,
                "config": asdict(each.source.config),
                "files": _encode(each.source),
            }
            for each in self._stored.values()
        ]
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self._root / ".images.json"
        fresh.write_text(json.dumps(note))
        fresh.replace(self._root / "images.json")

    def _load_note(self) -> None:
        note = self._root / "images.json"
        if not note.exists():
            return
        for each in json.loads(note.read_text()):
            source = ImageSource(_config(each["config"]), _decode(each["files"]))
            image_id = _image_id(source)
            self._stored[image_id] = _Stored(image_id, source, each["names"])


def tagged(reference: str) -> str:
    """Return a reference with ``:latest`` where it has neither tag nor digest.

    Raises:
        InvalidArgument: it is no reference.
    """
    if not _NAME.fullmatch(reference):
        raise InvalidArgument(f"{reference!r} is no image reference: write NAME[:TAG][@DIGEST]")
    if "@" in reference or ":" in reference.rpartition("/")[2]:
        return reference
    return f"{reference}:latest"


def _image_id(source: ImageSource) -> ImageId:
    facts = json.dumps([asdict(source.config), _encode(source)], sort_keys=True)
    return ImageId("sha256:" + hashlib.sha256(facts.encode()).hexdigest())


def _encode(source: ImageSource) -> dict[str, str]:
    return {path: base64.b64encode(data).decode() for path, data in source.files.items()}


def _decode(files: Mapping[str, str]) -> dict[str, bytes]:
    return {path: base64.b64decode(data) for path, data in files.items()}


def _config(facts: Mapping[str, Any]) -> ImageConfig:
    lists = {name: tuple(value) for name, value in facts.items() if isinstance(value, list)}
    return ImageConfig(**{**facts, **lists})


def _inside(path: str) -> str:
    """Return a path made absolute within the image: ``..`` leads to its root, not out of it."""
    return os.path.normpath("/" + path.lstrip("/"))


def _measure(place: Path) -> tuple[int, int]:
    """Return bytes and inodes below a directory."""
    sizes = [path.lstat().st_size for path in place.rglob("*")]
    return sum(sizes), len(sizes)


async def _open(context: ImageContext) -> ImageStore:
    if context.options.get("images", {}):
        raise InvalidArgument("images.images: the memory store takes no images from configuration")
    return MemoryImageStore(context.root)


MEMORY_IMAGES = ImageStoreType(
    name="memory",
    summary="one demonstration image, for the simulator",
    open=_open,
    forms=(RootfsForm.DIRECTORY,),
)
