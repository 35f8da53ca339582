"""The type fly keeps the contract of a runtime backend, but for what it declares."""

from __future__ import annotations

import secrets
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support.namespaces import NamespacesSubject, busybox_root

from polypod.plugin.ids import SandboxId, new_id
from polypod.plugin.rootfs import DirectoryRootfs
from polypod.plugin.runtime import RuntimeContext, SandboxSpec
from polypod.processes.host import ProcessHost
from polypod.testing.runtime_suite import CHECKS, Outcome, run_check
from polypod_fly.host import Group
from polypod_fly.plugin import plugin

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_busybox]


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

    async def container(self, container_id, sandbox, wanted, stdio, /):
        spec = await super().container(container_id, sandbox, wanted, stdio)
        root = spec.directory / "root"
        shutil.copytree(self._root, root, symlinks=True)
        return replace(spec, rootfs=DirectoryRootfs(root))

    async def discard(self, sandbox, /):
        shutil.rmtree(sandbox.directory)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root of one program: applets are links, so that a copy costs nothing."""
    made = busybox_root(tmp_path_factory.mktemp("busybox"))
    for path in (made / "bin").iterdir():
        if path.name != "busybox":
            path.unlink()
            path.symlink_to("busybox")
    return made


@pytest.fixture
async def subject(tmp_path, root):
    host = await ProcessHost.open(tmp_path / "processes")
    parent = f"/polypod-test-{secrets.token_hex(4)}"
    yield FlySubject(tmp_path, root, host, parent)
    await host.shutdown()
    Group(parent).remove()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_fly(check, subject):
    verdict = await run_check(check, subject)
    if verdict.outcome is Outcome.NOT_APPLICABLE:
        pytest.skip(verdict.detail)
    assert verdict.good, verdict.detail
