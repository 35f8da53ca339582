"""The contract of an image store as checks; used like `polypod.testing.runtime_suite`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from polypod.plugin.errors import InvalidArgument, NotFound, Unsupported
from polypod.plugin.ids import ContainerId, ImageId, new_id
from polypod.plugin.images import Image, ImageStore, ImageStoreType, PullProgress
from polypod.plugin.rootfs import (
    BlockRootfs,
    DirectoryRootfs,
    ErofsRootfs,
    OverlayRootfs,
    Rootfs,
    RootfsForm,
)
from polypod.testing.suite import (
    NotApplicable,
    Outcome,
    Verdict,
    expect,
    judge,
    refused,
    soon,
)

__all__ = ["CHECKS", "Check", "ImageLab", "ImageSubject", "Known", "Outcome", "run_check"]

_LIMIT = 1 << 20
_KINDS: Mapping[RootfsForm, type[Rootfs]] = {
    RootfsForm.OVERLAY: OverlayRootfs,
    RootfsForm.DIRECTORY: DirectoryRootfs,
    RootfsForm.EROFS: ErofsRootfs,
    RootfsForm.BLOCK: BlockRootfs,
}


@dataclass(frozen=True, slots=True)
class Known:
    """What the subject's images are known to contain."""

    tag: str
    """The canonical reference under which `ImageSubject.add` brings it, with a tag."""
    file: str
    """Absolute path of a regular file in it, shorter than 1 MiB."""
    content: bytes


class ImageSubject(Protocol):
    """What the author of a store writes to have it checked."""

    type: ImageStoreType
    exceptions: Mapping[str, str]
    """Check → the reason why the store does not pass it by design."""
    known: tuple[Known, Known]
    """Two different images."""

    async def open(self) -> ImageStore:
        """Open the store; called again, on the same directories, to play a restart."""
        ...

    async def add(
        self, store: ImageStore, number: int, progress: Callable[[PullProgress], None], /
    ) -> Image:
        """Bring the known image 0 or 1 into the store, by ``pull`` or ``load``."""
        ...


class ImageLab:
    """Everything that a check may do."""

    def __init__(self, subject: ImageSubject) -> None:
        self.subject = subject
        self.known = subject.known
        self.store: ImageStore
        self.progress: list[PullProgress] = []
        self._containers: list[ContainerId] = []

    async def open(self) -> None:
        """Open the store."""
        self.store = await soon(self.subject.open(), "open")

    async def restart(self) -> None:
        """Close it and open it again."""
        await soon(self.store.close(), "close")
        await self.open()

    async def close(self) -> None:
        """Give everything back; `Violation` if something is left of it then."""
        for container_id in self._containers:
            await soon(self.store.release(container_id), "release")
        left = set(await self.store.prepared()) & set(self._containers)
        for image in await self.store.list():
            await soon(self.store.remove(image.id), "remove")
        await soon(self.store.close(), "close")
        expect(not left, f"released root file systems are still there: {sorted(left)}")

    async def add(self, number: int = 0) -> Image:
        """Bring a known image into the store."""
        return await soon(self.subject.add(self.store, number, self.progress.append), "add")

    async def prepare(
        self, image: Image, form: RootfsForm | None = None
    ) -> tuple[ContainerId, Rootfs]:
        """Make a rootfs for a new container."""
        container_id = ContainerId(new_id())
        self._containers.append(container_id)
        wanted = form or self.subject.type.forms[0]
        return container_id, await soon(
            self.store.prepare(container_id, image.id, wanted), "prepare"
        )

    async def ids(self) -> list[ImageId]:
        """Return the ids of all images."""
        return [each.id for each in await soon(self.store.list(), "list")]


Check = Callable[[ImageLab], Awaitable[None]]


async def run_check(check: Check, subject: ImageSubject) -> Verdict:
    """Run one check on a subject, clean up, and say how it ended."""

    async def work() -> None:
        lab = ImageLab(subject)
        await lab.open()
        try:
            await check(lab)
        except BaseException:
            with contextlib.suppress(Exception):  # what the check found matters more
                await lab.close()
            raise
        await lab.close()

    return await judge(getattr(check, "__name__", ""), work, subject.exceptions)


async def check_empty_store_answers(lab: ImageLab) -> None:
    """An empty store lists nothing, finds nothing, and knows what it takes: the kubelet asks at once."""
    expect(await lab.ids() == [], "a new store lists images")
    expect(await lab.store.find(lab.known[0].tag) is None, "a new store finds an image")
    usage = await soon(lab.store.filesystem_usage(), "filesystem_usage")
    expect(usage.timestamp_ns > 0, "the usage has no time")
    expect(usage.mountpoint.is_dir(), f"{usage.mountpoint} is no directory")
    expect(list(await lab.store.prepared()) == [], "a new store has root file systems")


async def check_added_image_is_listed(lab: ImageLab) -> None:
    """An image that was brought in is listed, with its name, its ids and a size above 0."""
    image = await lab.add()
    expect(await lab.ids() == [image.id], "it is not listed, or not alone")
    expect(lab.known[0].tag in image.repo_tags, f"its tags are {image.repo_tags}")
    expect(image.id.startswith("sha256:") and len(image.id) == 71, f"its id is {image.id!r}")
    expect(image.size_bytes > 0, "its size is 0: the kubelet refuses such an image")
    expect(image.manifest_digest.startswith("sha256:"), f"its digest is {image.manifest_digest!r}")
    for each in image.repo_digests:
        expect(each.endswith(f"@{image.manifest_digest}"), f"{each} has another digest")


async def check_list_is_newest_first(lab: ImageLab) -> None:
    """The list has the newest image first."""
    first = await lab.add(0)
    second = await lab.add(1)
    expect(await lab.ids() == [second.id, first.id], "the order is another")


async def check_find_by_name_and_id(lab: ImageLab) -> None:
    """An image is found by tag, digest, id with and without ``sha256:``, and id prefix."""
    image = await lab.add()
    digits = image.id.removeprefix("sha256:")
    ways = [*image.repo_tags, *image.repo_digests, image.id, digits, digits[:12], digits[:3]]
    for reference in ways:
        found = await soon(lab.store.find(reference), "find")
        expect(found is not None and found.id == image.id, f"it is not found by {reference!r}")


async def check_find_unknown_is_none(lab: ImageLab) -> None:
    """What is not there is None, not an error: the kubelet pulls it then."""
    await lab.add()
    for reference in ("localhost/no-such-image:v1", "sha256:" + "0" * 64, "fffffffffffe"):
        expect(await lab.store.find(reference) is None, f"{reference!r} finds something")


async def check_find_nonsense_is_refused(lab: ImageLab) -> None:
    """What is no reference is InvalidArgument."""
    for reference in ("", "UPPER CASE", "a b", "https://host/x", "name:tag:tag", "@sha256:1"):
        await refused(lab.store.find(reference), f"find {reference!r}", InvalidArgument)


async def check_adding_twice_is_one_image(lab: ImageLab) -> None:
    """The same image brought in twice is one image with the same id."""
    first, second = await lab.add(), await lab.add()
    expect(first.id == second.id, "it has another id")
    expect(await lab.ids() == [first.id], "it is listed twice")


async def check_adding_at_the_same_time(lab: ImageLab) -> None:
    """The same image brought in several times at once is one image."""
    images = await asyncio.gather(*(lab.add() for _ in range(4)))
    expect(len({each.id for each in images}) == 1, "it has several ids")
    expect(await lab.ids() == [images[0].id], "it is listed more than once")


async def check_removed_image_is_gone(lab: ImageLab) -> None:
    """A removed image is neither listed nor found, under none of its names; others stay."""
    image, other = await lab.add(0), await lab.add(1)
    await soon(lab.store.remove(image.id), "remove")
    expect(await lab.ids() == [other.id], "the list is wrong")
    for reference in (image.id, *image.repo_tags, *image.repo_digests):
        expect(await lab.store.find(reference) is None, f"{reference!r} is still found")


async def check_remove_is_idempotent(lab: ImageLab) -> None:
    """``remove`` may be repeated, and of something unknown it succeeds."""
    image = await lab.add()
    for _ in range(2):
        await soon(lab.store.remove(image.id), "remove")
    await soon(lab.store.remove(ImageId("sha256:" + "0" * 64)), "remove of an unknown id")


async def check_removed_image_can_come_back(lab: ImageLab) -> None:
    """A removed image can be brought in again, with the same id and its content."""
    image = await lab.add()
    await soon(lab.store.remove(image.id), "remove")
    again = await lab.add()
    expect(again.id == image.id, "it has another id")
    _, rootfs = await lab.prepare(again)
    _expect_content(rootfs, lab.known[0])


async def check_pull_of_unknown_is_refused(lab: ImageLab) -> None:
    """``pull`` of what the source does not have is NotFound, or Unsupported; nothing is listed."""
    pull = lab.store.pull("localhost/no-such-image:v1")
    await refused(pull, "pull of an unknown image", NotFound, Unsupported)
    expect(await lab.ids() == [], "something is listed")


async def check_pull_of_nonsense_is_refused(lab: ImageLab) -> None:
    """``pull`` of what is no reference is InvalidArgument."""
    await refused(lab.store.pull("NOT A REFERENCE"), "pull of nonsense", InvalidArgument)


async def check_progress_is_told(lab: ImageLab) -> None:
    """Bringing in an image tells its progress, never more done than there is."""
    await lab.add()
    expect(lab.progress, "no progress was told")
    for step in lab.progress:
        expect(
            step.total_bytes == 0 or step.done_bytes <= step.total_bytes,
            f"{step.what}: {step.done_bytes} of {step.total_bytes} bytes",
        )


async def check_every_declared_form_is_made(lab: ImageLab) -> None:
    """Each form that the store declares can be made of an image, and has its content."""
    image = await lab.add()
    for form in lab.subject.type.forms:
        _, rootfs = await lab.prepare(image, form)
        expect(isinstance(rootfs, _KINDS[form]), f"{form} is a {type(rootfs).__name__}")
        if not isinstance(rootfs, BlockRootfs | ErofsRootfs):
            _expect_content(rootfs, lab.known[0])


async def check_other_forms_are_refused(lab: ImageLab) -> None:
    """A form that the store does not declare is Unsupported, and nothing is left of it."""
    image = await lab.add()
    others = [form for form in RootfsForm if form not in lab.subject.type.forms]
    if not others:
        raise NotApplicable("the store declares every form")
    container_id = ContainerId(new_id())
    for form in others:
        prepare = lab.store.prepare(container_id, image.id, form)
        await refused(prepare, f"prepare as {form}", Unsupported)
    expect(container_id not in await lab.store.prepared(), "the refused rootfs is there")


async def check_prepare_is_idempotent(lab: ImageLab) -> None:
    """``prepare`` for the same container gives the same rootfs, with what was written to it."""
    image = await lab.add()
    container_id, rootfs = await lab.prepare(image)
    _write(rootfs, "mark", b"kept")
    form = lab.subject.type.forms[0]
    again = await soon(lab.store.prepare(container_id, image.id, form), "prepare")
    expect(again == rootfs, "it is another rootfs")
    expect(_read(again, "/mark") == b"kept", "what was written is lost")


async def check_prepare_of_unknown_image_is_refused(lab: ImageLab) -> None:
    """A rootfs of an unknown image is NotFound."""
    prepare = lab.store.prepare(
        ContainerId(new_id()), ImageId("sha256:" + "0" * 64), lab.subject.type.forms[0]
    )
    await refused(prepare, "prepare of an unknown image", NotFound)


async def check_containers_do_not_share_writes(lab: ImageLab) -> None:
    """What one container writes is seen neither by another one nor by the next of the image."""
    image = await lab.add()
    _, first = await lab.prepare(image)
    _, second = await lab.prepare(image)
    _write(first, "mark", b"mine")
    expect(_read(second, "/mark") is None, "the other container sees it")
    _, third = await lab.prepare(image)
    expect(_read(third, "/mark") is None, "the next container sees it")


async def check_prepared_and_released(lab: ImageLab) -> None:
    """``prepared`` lists who has a rootfs; ``release`` gives it back; both may be repeated."""
    image = await lab.add()
    container_id, _ = await lab.prepare(image)
    expect(list(await lab.store.prepared()) == [container_id], "it is not in `prepared`")
    for _ in range(2):
        await soon(lab.store.release(container_id), "release")
    expect(list(await lab.store.prepared()) == [], "it is still in `prepared`")
    await soon(lab.store.release(ContainerId(new_id())), "release of an unknown id")


async def check_released_writes_do_not_come_back(lab: ImageLab) -> None:
    """A new container never sees what a released one wrote, also where directories are recycled."""
    image = await lab.add()
    container_id, rootfs = await lab.prepare(image)
    _write(rootfs, "secret", b"of the first")
    await soon(lab.store.release(container_id), "release")
    for _ in range(4):
        _, fresh = await lab.prepare(image)
        expect(_read(fresh, "/secret") is None, "a new container sees what an old one wrote")


async def check_rootfs_outlives_its_image(lab: ImageLab) -> None:
    """Removing an image leaves the root file systems of its containers whole."""
    image = await lab.add()
    _, rootfs = await lab.prepare(image)
    await soon(lab.store.remove(image.id), "remove")
    await asyncio.sleep(0.05)
    _expect_content(rootfs, lab.known[0])


async def check_image_file(lab: ImageLab) -> None:
    """``image_file`` returns a small file; None for what is missing or no file."""
    image, known = await lab.add(), lab.known[0]
    content = await soon(lab.store.image_file(image.id, known.file, _LIMIT), "image_file")
    expect(content == known.content, f"{known.file} is {content!r}")
    for path in ("/no/such/file", "/", str(Path(known.file).parent)):
        got = await soon(lab.store.image_file(image.id, path, _LIMIT), "image_file")
        expect(got is None, f"{path} is {got!r}")


async def check_image_file_has_a_limit(lab: ImageLab) -> None:
    """``image_file`` of a file beyond the limit is InvalidArgument."""
    image, known = await lab.add(), lab.known[0]
    read = lab.store.image_file(image.id, known.file, len(known.content) - 1)
    await refused(read, "a file beyond the limit", InvalidArgument)


async def check_image_file_stays_inside(lab: ImageLab) -> None:
    """``image_file`` never reads a file of the host (I10)."""
    image = await lab.add()
    host = Path("/proc/self/status").read_bytes()[:5]
    for path in ("/../../../../proc/self/status", "../../../../../../proc/self/status"):
        got = await soon(lab.store.image_file(image.id, path, _LIMIT), "image_file")
        expect(got is None or not got.startswith(host), f"{path} reads the host's file")


async def check_usage_grows(lab: ImageLab) -> None:
    """The store takes more with an image than without."""
    before = await lab.store.filesystem_usage()
    await lab.add()
    after = await lab.store.filesystem_usage()
    expect(after.used_bytes > before.used_bytes, "used_bytes has not grown")


async def check_writable_usage(lab: ImageLab) -> None:
    """``writable_usage`` is None until there is a sample, and for an unknown container."""
    image = await lab.add()
    container_id, rootfs = await lab.prepare(image)
    _write(rootfs, "data", b"x" * 10_000)
    usage = await soon(lab.store.writable_usage(container_id), "writable_usage")
    expect(usage is None or usage.timestamp_ns > 0, "the sample has no time")
    unknown = await soon(lab.store.writable_usage(ContainerId(new_id())), "writable_usage")
    expect(unknown is None, "an unknown container has a writable layer")


async def check_restart_keeps_images(lab: ImageLab) -> None:
    """Images survive a restart, with names and content."""
    image = await lab.add()
    await lab.restart()
    expect(await lab.ids() == [image.id], "the list is another")
    found = await lab.store.find(lab.known[0].tag)
    expect(found is not None and found.id == image.id, "its name is lost")
    expect(found is not None and found.config == image.config, "its config is another")
    _, rootfs = await lab.prepare(image)
    _expect_content(rootfs, lab.known[0])


async def check_restart_keeps_prepared(lab: ImageLab) -> None:
    """Root file systems survive a restart, and can be released after it."""
    image = await lab.add()
    container_id, rootfs = await lab.prepare(image)
    _write(rootfs, "mark", b"kept")
    await lab.restart()
    expect(list(await lab.store.prepared()) == [container_id], "`prepared` is another")
    form = lab.subject.type.forms[0]
    again = await soon(lab.store.prepare(container_id, image.id, form), "prepare")
    expect(_read(again, "/mark") == b"kept", "what was written is lost")
    await soon(lab.store.release(container_id), "release")
    expect(list(await lab.store.prepared()) == [], "it cannot be released")


async def check_space_comes_back(lab: ImageLab) -> None:
    """The space of a removed image comes back, behind the call."""
    empty = (await lab.store.filesystem_usage()).used_bytes
    image = await lab.add()
    full = (await lab.store.filesystem_usage()).used_bytes
    await soon(lab.store.remove(image.id), "remove")
    used = full

    async def look() -> None:
        nonlocal used
        while used >= full:
            used = (await lab.store.filesystem_usage()).used_bytes
            await asyncio.sleep(0.02)

    await soon(look(), "space comes back")
    expect(empty <= used < full, f"{used} bytes are used; {empty} before, {full} with the image")


def _places(rootfs: Rootfs) -> Sequence[Path]:
    """Return the directories that make a rootfs up, the writable one first."""
    match rootfs:
        case DirectoryRootfs(path):
            return (path,)
        case OverlayRootfs(lowers, upper):
            return (upper, *lowers)
        case _:
            raise NotApplicable("a block image cannot be looked into without a mount")


def _read(rootfs: Rootfs, path: str) -> bytes | None:
    for place in _places(rootfs):
        file = place / path.lstrip("/")
        if file.is_file():
            return file.read_bytes()
    return None


def _write(rootfs: Rootfs, name: str, content: bytes) -> None:
    (_places(rootfs)[0] / name).write_bytes(content)


def _expect_content(rootfs: Rootfs, known: Known) -> None:
    got = _read(rootfs, known.file)
    expect(got == known.content, f"{known.file} in the rootfs is {got!r}")


CHECKS: tuple[Check, ...] = tuple(
    value for name, value in list(globals().items()) if name.startswith("check_")
)
