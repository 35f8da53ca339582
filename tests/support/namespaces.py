"""The namespaces engine as a subject of the runtime suite: real processes, a busybox root."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from polypod.plugin.ids import ContainerId, SandboxId, new_id
from polypod.plugin.oci import Linux, MemoryLimits, OciConfig, OciMount, OciResources, Process
from polypod.plugin.requests import (
    Capabilities,
    ContainerConfig,
    ContainerMetadata,
    ImageSpec,
    NamespaceOptions,
    SandboxConfig,
)
from polypod.plugin.rootfs import OverlayRootfs
from polypod.plugin.runtime import ContainerSpec, RuntimeBackend, RuntimeContext, SandboxSpec
from polypod.plugin.services import Stdio
from polypod.processes.host import ProcessHost
from polypod.spec.capabilities import capability_sets
from polypod.spec.devices import device_rules
from polypod.spec.mounts import MountInputs, SandboxFiles, container_mounts
from polypod.spec.namespaces import container_namespaces, sandbox_namespace
from polypod.testing.runtime_lab import Wanted
from polypod_namespaces.plugin import plugin

_KINDS = frozenset(["network", "ipc", "uts", "pid"])


def busybox_root(directory: Path) -> Path:
    """Make a root file system of busybox and its applets; once for a whole run."""
    program = shutil.which("busybox")
    assert program is not None
    for name in ("bin", "proc", "sys", "dev", "etc", "tmp"):
        (directory / name).mkdir(parents=True)
    (directory / "tmp").chmod(0o1777)
    shutil.copy(program, directory / "bin/busybox")
    listed = subprocess.run([program, "--list"], capture_output=True, text=True, check=True)
    for applet in listed.stdout.split():
        if applet != "busybox":
            (directory / "bin" / applet).hardlink_to(directory / "bin/busybox")
    (directory / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    return directory


class NamespacesSubject:
    """A `RuntimeSubject` on a directory and a cgroup parent of its own."""

    shell = ("/bin/sh", "-c")
    path = "/bin"
    out_of_memory = ("tail", "/dev/zero")

    def __init__(self, directory: Path, root: Path, host: ProcessHost, parent: str) -> None:
        (self.type,) = plugin.polypod_runtime_types()
        self._directory = directory
        self._root = root
        self._host = host
        self._parent = parent

    async def open(self) -> RuntimeBackend:
        """Open it on the same state as before."""
        state = self._directory / "state"
        state.mkdir(parents=True, exist_ok=True)
        return await self.type.open(
            RuntimeContext(
                handler="namespaces",
                options={},
                root=self._directory,
                state=state,
                cgroup_parent=self._parent,
                supervisor=self._host.supervisor,
            )
        )

    async def sandbox(self, config: SandboxConfig, /) -> SandboxSpec:
        """Make the namespaces and the directory."""
        sandbox_id = SandboxId(new_id())
        made = await self._host.supervisor.make_namespaces(
            sandbox_id, _KINDS, hostname=config.hostname
        )
        directory = self._directory / sandbox_id
        directory.mkdir()
        return SandboxSpec(sandbox_id, config, made, directory, f"{self._parent}/{sandbox_id}")

    async def container(
        self, container_id: ContainerId, sandbox: SandboxSpec, wanted: Wanted, stdio: Stdio, /
    ) -> ContainerSpec:
        """Make the config that core would make of such a request."""
        directory = sandbox.directory / container_id
        (directory / "upper").mkdir(parents=True)
        (directory / "work").mkdir()
        return ContainerSpec(
            id=container_id,
            sandbox=sandbox,
            request=ContainerConfig(ContainerMetadata("box"), ImageSpec("localhost/demo")),
            config=self._config(sandbox, wanted),
            rootfs=OverlayRootfs((self._root,), directory / "upper", directory / "work"),
            stdio=stdio,
            directory=directory,
            cgroup=f"{sandbox.cgroup}/{container_id}",
        )

    @staticmethod
    def _config(sandbox: SandboxSpec, wanted: Wanted) -> OciConfig:
        process = Process(
            args=wanted.args,
            env=wanted.env,
            cwd=wanted.cwd,
            terminal=wanted.terminal,
            user=wanted.user,
            capabilities=capability_sets(Capabilities(), privileged=False),
        )
        limit = wanted.memory_limit_bytes or None
        paths = {kind: sandbox_namespace(kind) for kind in _KINDS}
        options = NamespaceOptions()
        return OciConfig(
            process,
            mounts=_mounts(sandbox),
            linux=Linux(
                namespaces=container_namespaces(options, options, paths, privileged=False),
                resources=OciResources(
                    memory=MemoryLimits(limit=limit, swap=limit),
                    devices=device_rules((), privileged=False),
                ),
            ),
        )

    async def discard(self, sandbox: SandboxSpec, /) -> None:
        """Unpin the namespaces, remove the directories."""
        assert sandbox.namespaces is not None
        await self._host.supervisor.drop_namespaces(sandbox.id)
        for fd in _descriptors(sandbox):
            _close(fd)
        shutil.rmtree(sandbox.directory)


def _mounts(sandbox: SandboxSpec) -> tuple[OciMount, ...]:
    files = SandboxFiles(shm=str(sandbox.directory / "shm"))
    return container_mounts((), MountInputs(files=files))


def _descriptors(sandbox: SandboxSpec) -> list[int]:
    made = sandbox.namespaces
    if made is None:
        return []
    return [*made.fds.values(), *([made.netlink] if made.netlink is not None else [])]


def _close(fd: int) -> None:
    import os

    os.close(fd)
