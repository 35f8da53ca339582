"""The type fly keeps the contract of a runtime backend, but for what it declares."""

from __future__ import annotations

import secrets
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support.namespaces import NamespacesSubject, busybox_root

from polypod.backend.cgroups import Cgroups, discover
from polypod.plugin.ids import SandboxId, new_id
from polypod.plugin.oci import OciMount
from polypod.plugin.rootfs import DirectoryRootfs
from polypod.plugin.runtime import RuntimeContext, SandboxSpec
from polypod.processes.host import ProcessHost
from polypod.testing.runtime_lab import RuntimeLab
from polypod.testing.runtime_suite import CHECKS, Outcome, run_check
from polypod_fly.plugin import plugin

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay, pytest.mark.needs_busybox]


class FlySubject(NamespacesSubject):
    """A `RuntimeSubject`; nothing limits memory here, so nothing may run out of it."""

    out_of_memory = ()

    def __init__(self, directory: Path, root: Path, host: ProcessHost, parent: str) -> None:
        super().__init__(directory, root, host, parent)
        (self.type,) = plugin.polypod_runtime_types()

    async def open(self):
        state = self._directory / "state"
        state.mkdir(exist_ok=True)
        return await self.type.open(
            RuntimeContext("fly", {}, self._directory, state, self._parent, self._host.supervisor)
        )

    async def sandbox(self, config, /):
        sandbox_id = SandboxId(new_id())
        directory = self._directory / sandbox_id
        directory.mkdir()
        return SandboxSpec(sandbox_id, config, None, directory, f"{self._parent}/{sandbox_id}")

    async def discard(self, sandbox, /):
        shutil.rmtree(sandbox.directory)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busybox_root(tmp_path_factory.mktemp("busybox"))


@pytest.fixture
async def subject(tmp_path, root, host):
    parent = f"/polypod-test-{secrets.token_hex(4)}"
    yield FlySubject(tmp_path, root, host, parent)
    Cgroups(discover().only_tracking()).end(parent)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_fly(check, subject):
    verdict = await run_check(check, subject)
    if verdict.outcome is Outcome.NOT_APPLICABLE:
        pytest.skip(verdict.detail)
    assert verdict.good, verdict.detail


async def test_volumes_are_read_only_where_that_is_asked(subject, tmp_path):
    """To leave an option out in silence would be worse than not to have volumes."""
    lab = RuntimeLab(subject)
    await lab.open()
    (tmp_path / "volume").mkdir()
    script = "touch /read /write/there && touch /read/no || echo refused"
    box = await lab.box(await lab.sandbox(), lab.script(script))
    volumes = tuple(
        OciMount(place, "bind", f"{tmp_path}/volume", ("rbind", "rprivate", how))
        for place, how in (("/read", "ro"), ("/write", "rw"))
    )
    config = replace(box.spec.config, mounts=(*box.spec.config.mounts, *volumes))
    await lab.backend.create(replace(box.spec, config=config))
    await box.start()
    await box.ended()
    assert (await box.text())[0] == b"refused\n"
    assert [path.name for path in (tmp_path / "volume").iterdir()] == ["there"]
    await lab.close()


async def test_a_directory_is_a_root_too(subject, root):
    """The other form that it accepts; the suite runs on layers."""
    lab = RuntimeLab(subject)
    await lab.open()
    box = await lab.box(await lab.sandbox(), lab.script("test -e /proc/1/stat && exit 8"))
    directory = box.spec.directory / "root"
    shutil.copytree(root, directory, symlinks=True)
    await lab.backend.create(replace(box.spec, rootfs=DirectoryRootfs(directory)))
    await box.start()
    assert (await box.ended()).status.code == 8
    await lab.close()
