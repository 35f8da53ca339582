"""The images for the conformance suite: made here, served here, pulled under the names that the suite uses."""

from __future__ import annotations

import pytest
from support.critest_images import E2E, STAGING, make_all, serve_all, with_own_digest

from polypod.plugin.rootfs import RootfsForm

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_busybox, pytest.mark.needs_docker_registry]


@pytest.fixture(scope="module")
def made():
    return make_all()


@pytest.fixture
async def served(made, stores, docker_registry):
    serve_all(docker_registry, stores.place / "hosts.d", made)
    return await stores.open()


async def test_one_image_under_two_registries_is_one_image(made, served):
    if "pause:3.9" in made.missing:
        pytest.skip(made.missing["pause:3.9"])
    one = await served.pull("registry.one.example/pause:3.9")
    two = await served.pull("registry.two.example/pause:3.9")
    assert one.id == two.id
    assert sorted(two.repo_tags) == [
        "registry.one.example/pause:3.9",
        "registry.two.example/pause:3.9",
    ]


async def test_three_tags_are_one_image_and_three_names_three(served):
    tags = [await served.pull(f"r.example/{STAGING}/test-image-tags:{n}") for n in (1, 2, 3)]
    names = [await served.pull(f"r.example/{STAGING}/test-image-{n}") for n in (1, 2, 3)]
    assert len({each.id for each in tags}) == 1
    assert len(tags[-1].repo_tags) == 3
    assert len({each.id for each in names}) == 3


@pytest.mark.parametrize(
    ("name", "user"),
    [
        ("user-uid", "1002"),
        ("user-username", "www-data"),
        ("user-uid-group", "1003:1004"),
        ("user-username-group", "www-data:1004"),
        ("predefined-group", "1000"),
    ],
)
async def test_users(name, user, served):
    image = await served.pull(f"r.example/{STAGING}/test-image-{name}")
    assert image.config.user == user


async def test_the_shell_is_not_the_file_that_applets_are_links_to(served):
    image = await served.pull(f"r.example/{E2E}/busybox:1.29-2")
    rootfs = await served.prepare("e" * 64, image.id, RootfsForm.DIRECTORY)
    shell, ls = (rootfs.path / "bin" / name for name in ("sh", "ls"))
    assert ls.stat().st_ino == (rootfs.path / "bin/busybox").stat().st_ino
    assert shell.stat().st_ino != ls.stat().st_ino
    await served.release("e" * 64)


async def test_the_privileged_program_keeps_its_setuid_bit(made, served):
    name = f"{E2E}/nonewprivs:1.3"
    if name in made.missing:
        pytest.skip(made.missing[name])
    image = await served.pull(f"r.example/{name}")
    rootfs = await served.prepare("f" * 64, image.id, RootfsForm.DIRECTORY)
    assert (rootfs.path / "program").stat().st_mode & 0o7777 == 0o4755
    await served.release("f" * 64)


def test_a_program_that_wants_one_digest_gets_another():
    old, new = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    program = f"x/test-image-digest@{old}y{old}".encode()
    assert with_own_digest(program, new) == f"x/test-image-digest@{new}y{old}".encode()
    with pytest.raises(ValueError, match="names 0 digests"):
        with_own_digest(b"nothing", new)
