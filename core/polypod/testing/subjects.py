"""The subjects of this room's own plugins: what an author of a plugin writes for his own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from polypod.plugin.ids import ContainerId, SandboxId, new_id
from polypod.plugin.images import Image, ImageConfig, ImageStore, PullProgress
from polypod.plugin.network import AttachRequest, Network
from polypod.plugin.oci import Linux, MemoryLimits, OciConfig, OciResources, Process
from polypod.plugin.requests import (
    ContainerConfig,
    ContainerMetadata,
    ImageSpec,
    PodMetadata,
    SandboxConfig,
)
from polypod.plugin.rootfs import DirectoryRootfs
from polypod.plugin.runtime import ContainerSpec, RuntimeBackend, RuntimeContext, SandboxSpec
from polypod.plugin.services import Stdio
from polypod.testing.fake_supervisor import FakeSupervisor
from polypod.testing.image_store_suite import Known
from polypod.testing.memory_images import MEMORY_IMAGES, ImageSource, MemoryImageStore
from polypod.testing.memory_network import MemoryNetwork
from polypod.testing.runtime_lab import Wanted
from polypod.testing.simulator import simulator_type


class SimulatorSubject:
    """A `RuntimeSubject`: the simulator on a directory of its own."""

    shell = ("/bin/sh", "-c")
    path = "/bin"
    out_of_memory = ("eat", str(64 << 20))

    def __init__(self, directory: Path) -> None:
        self.type = simulator_type()
        self._directory = directory
        self._supervisor = FakeSupervisor()

    async def open(self) -> RuntimeBackend:
        """Open it on the same state as before."""
        state = self._directory / "state"
        state.mkdir(parents=True, exist_ok=True)
        return await self.type.open(
            RuntimeContext(
                handler="simulator",
                options={},
                root=self._directory,
                state=state,
                cgroup_parent="/unused",
                supervisor=self._supervisor,
            )
        )

    async def sandbox(self, config: SandboxConfig, /) -> SandboxSpec:
        """Describe a sandbox; nothing has to be made for it."""
        sandbox_id = SandboxId(new_id())
        return SandboxSpec(sandbox_id, config, None, self._directory, f"/unused/{sandbox_id}")

    async def container(
        self, container_id: ContainerId, sandbox: SandboxSpec, wanted: Wanted, stdio: Stdio, /
    ) -> ContainerSpec:
        """Describe a container with an empty directory as its rootfs."""
        process = Process(
            args=wanted.args,
            env=wanted.env,
            cwd=wanted.cwd,
            terminal=wanted.terminal,
            user=wanted.user,
        )
        limits = OciResources(memory=MemoryLimits(limit=wanted.memory_limit_bytes or None))
        return ContainerSpec(
            id=container_id,
            sandbox=sandbox,
            request=ContainerConfig(ContainerMetadata("box"), ImageSpec("localhost/demo")),
            config=OciConfig(process, linux=Linux(resources=limits)),
            rootfs=DirectoryRootfs(self._directory / "rootfs"),
            stdio=stdio,
            directory=self._directory,
            cgroup=f"{sandbox.cgroup}/{container_id}",
        )

    async def discard(self, sandbox: SandboxSpec, /) -> None:
        """Nothing was made, so nothing is given back."""
        del sandbox


class MemoryImageSubject:
    """An `ImageSubject`: the memory store."""

    type = MEMORY_IMAGES
    exceptions: Mapping[str, str] = {}
    known = (
        Known("localhost/one:v1", "/etc/one", b"content of one\n"),
        Known("localhost/two:v2", "/srv/data/two", b"content of two\n"),
    )

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def open(self) -> ImageStore:
        """Open it on the same directory as before."""
        self._directory.mkdir(parents=True, exist_ok=True)
        sources = {
            each.tag: ImageSource(ImageConfig(cmd=("sh",)), {each.file: each.content})
            for each in self.known
        }
        return MemoryImageStore(self._directory, sources)

    async def add(
        self, store: ImageStore, number: int, progress: Callable[[PullProgress], None], /
    ) -> Image:
        """Pull it."""
        return await store.pull(self.known[number].tag, progress=progress)


class MemoryNetworkSubject:
    """A `NetworkSubject`: the memory network, with null devices for namespaces."""

    exceptions: Mapping[str, str] = {}

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def open(self) -> Network:
        """Open it on the same directory as before."""
        self._directory.mkdir(parents=True, exist_ok=True)
        return MemoryNetwork(root=self._directory)

    async def request(self, sandbox_id: SandboxId, /) -> AttachRequest:
        """Describe a sandbox; the network looks at no descriptor."""
        return AttachRequest(sandbox_id, PodMetadata("pod", "uid", "ns"), namespace=-1, netlink=-1)

    async def discard(self, request: AttachRequest, /) -> None:
        """Nothing was made, so nothing is given back."""
        del request
