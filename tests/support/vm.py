"""The VM backend as a subject of the runtime suite: real machines, a busybox root in an erofs image."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from polypod.plugin.ids import ContainerId, SandboxId, new_id
from polypod.plugin.oci import Linux, MemoryLimits, OciConfig, OciResources, Process
from polypod.plugin.requests import (
    Capabilities,
    ContainerConfig,
    ContainerMetadata,
    ImageSpec,
    NamespaceOptions,
    SandboxConfig,
)
from polypod.plugin.rootfs import BlockRootfs
from polypod.plugin.runtime import ContainerSpec, RuntimeBackend, RuntimeContext, SandboxSpec
from polypod.plugin.services import Stdio
from polypod.processes.host import ProcessHost
from polypod.spec.capabilities import capability_sets
from polypod.spec.devices import device_rules
from polypod.spec.mounts import MountInputs, SandboxFiles, container_mounts
from polypod.spec.namespaces import container_namespaces, sandbox_namespace
from polypod.testing.runtime_lab import Wanted
from polypod_vm.plugin import plugin
from support.namespaces import busybox_root

FILES = {"hostname": "pod\n", "hosts": "127.0.0.1 localhost\n", "resolv.conf": "nameserver ::1\n"}


def busybox_image(directory: Path) -> Path:
    """Make an erofs image of busybox and its applets; once for a whole run."""
    root = busybox_root(directory / "root")
    image = directory / "busybox.erofs"
    subprocess.run(
        ["mkfs.erofs", "--quiet", str(image), str(root)], check=True, capture_output=True
    )
    return image


class VmSubject:
    """A `RuntimeSubject`. What takes long to make (guest, QEMU's capabilities) is shared below ``root``."""

    shell = ("/bin/sh", "-c")
    path = "/bin"
    out_of_memory = ("tail", "/dev/zero")

    def __init__(
        self, directory: Path, root: Path, image: Path, host: ProcessHost, parent: str
    ) -> None:
        (self.type,) = plugin.polypod_runtime_types()
        self._directory = directory
        self._root = root
        self._image = image
        self._host = host
        self._parent = parent

    async def open(self) -> RuntimeBackend:
        """Open it on the same state as before."""
        state = self._directory / "state"
        state.mkdir(parents=True, exist_ok=True)
        return await self.type.open(
            RuntimeContext(
                handler="vm",
                options={"memory_mib": 256},
                root=self._root,
                state=state,
                cgroup_parent=self._parent,
                supervisor=self._host.supervisor,
            )
        )

    async def sandbox(self, config: SandboxConfig, /) -> SandboxSpec:
        """Make the network namespace and the pod's files."""
        sandbox_id = SandboxId(new_id())
        made = await self._host.supervisor.make_namespaces(sandbox_id, frozenset({"network"}))
        directory = self._directory / sandbox_id
        directory.mkdir()
        for name, text in FILES.items():
            (directory / name).write_text(text)
        return SandboxSpec(sandbox_id, config, made, directory, f"{self._parent}/{sandbox_id}")

    async def container(
        self, container_id: ContainerId, sandbox: SandboxSpec, wanted: Wanted, stdio: Stdio, /
    ) -> ContainerSpec:
        """Make the config that core would make of such a request."""
        directory = sandbox.directory / container_id
        directory.mkdir(parents=True)
        return ContainerSpec(
            id=container_id,
            sandbox=sandbox,
            request=ContainerConfig(ContainerMetadata("box"), ImageSpec("localhost/demo")),
            config=_config(sandbox, wanted),
            rootfs=BlockRootfs(self._image, "erofs"),
            stdio=stdio,
            directory=directory,
            cgroup=f"{sandbox.cgroup}/{container_id}",
        )

    async def discard(self, sandbox: SandboxSpec, /) -> None:
        """Unpin the namespace, remove the directories."""
        import os

        assert sandbox.namespaces is not None
        await self._host.supervisor.drop_namespaces(sandbox.id)
        held = sandbox.namespaces
        for fd in [*held.fds.values(), *([held.netlink] if held.netlink is not None else [])]:
            os.close(fd)
        shutil.rmtree(sandbox.directory)


def _config(sandbox: SandboxSpec, wanted: Wanted) -> OciConfig:
    files = {name: str(sandbox.directory / path) for name, path in _PATHS.items()}
    limit = wanted.memory_limit_bytes or None
    options = NamespaceOptions()
    paths = {"network": sandbox_namespace("network")}
    return OciConfig(
        Process(
            args=wanted.args,
            env=wanted.env,
            cwd=wanted.cwd,
            terminal=wanted.terminal,
            user=wanted.user,
            capabilities=capability_sets(Capabilities(), privileged=False),
        ),
        hostname=sandbox.config.hostname,
        mounts=container_mounts((), MountInputs(files=SandboxFiles(**files))),
        linux=Linux(
            namespaces=container_namespaces(options, options, paths, privileged=False),
            resources=OciResources(
                memory=MemoryLimits(limit=limit, swap=limit),
                devices=device_rules((), privileged=False),
            ),
        ),
    )


_PATHS = {"hostname": "hostname", "hosts": "hosts", "resolv_conf": "resolv.conf", "shm": "shm"}
