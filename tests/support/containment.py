"""A bench for tests of confinement: pods and containers as core makes them, with hostile roots and configs.

Requests go through the real pure functions (`polypod.lifecycle.assemble`), the real backend and the real
processes. A test may change the OCI config on its way, give any root file system, and gets what came out.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from polypod.lifecycle.assemble import Assembler
from polypod.lifecycle.checks import check_container, check_sandbox
from polypod.lifecycle.host_facts import HostFacts
from polypod.lifecycle.parts import Handler
from polypod.lifecycle.ports import ConfigRequest
from polypod.lifecycle.sandboxes import sandbox_namespaces
from polypod.lifecycle.user_namespaces import pod_maps
from polypod.plugin.errors import PolypodError
from polypod.plugin.ids import ContainerId, Digest, ExecId, ImageId, SandboxId, new_id
from polypod.plugin.images import Image, ImageConfig, ImageStore
from polypod.plugin.oci import OciConfig, Process
from polypod.plugin.requests import (
    ContainerConfig,
    ContainerMetadata,
    ImageSpec,
    NamespaceOptions,
    PodMetadata,
    SandboxConfig,
    SandboxSecurity,
)
from polypod.plugin.rootfs import OverlayRootfs, Rootfs
from polypod.plugin.runtime import (
    BackendEvent,
    BackendState,
    BackendStatus,
    ContainerSpec,
    ExecSpec,
    RuntimeContext,
    SandboxSpec,
)
from polypod.plugin.services import Session, Stdio
from polypod.processes.host import ProcessHost
from polypod.testing.fake_logs import FakeCaptured
from polypod_namespaces.backend import NamespacesBackend, open_backend
from polypod_namespaces.plugin import plugin
from support.containment_parts import OWN_PIDS, Result, security

WAIT_S = 30.0
_OUTPUT_BYTES = 4 * 1024 * 1024

Adjust = Callable[[OciConfig], OciConfig]


class _ImageFiles:
    """Stands in for an image store: the user database is all that is asked of it."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files

    async def image_file(self, _image: ImageId, path: str, _limit: int, /) -> bytes | None:
        return self._files.get(path)


class Bench:
    """The backend on a directory and a cgroup parent of its own."""

    def __init__(
        self,
        directory: Path,
        root: Path,
        host: ProcessHost,
        parent: str,
        backend: NamespacesBackend,
    ) -> None:
        self.directory = directory
        self.root = root
        self.host = host
        self.parent = parent
        self.backend = backend
        self.facts = HostFacts.probe()
        self.assembler = Assembler(host=self.facts)
        (offer,) = plugin.polypod_runtime_types()
        self.handler = Handler("namespaces", offer, backend, cast(ImageStore, _ImageFiles({})))
        self._pods: list[Pod] = []
        self.events: list[BackendEvent] = []
        self._listener = asyncio.ensure_future(self._listen())

    async def _listen(self) -> None:
        async for event in self.backend.events():
            self.events.append(event)

    @classmethod
    async def open(cls, directory: Path, root: Path, host: ProcessHost, parent: str) -> Bench:
        """Open the backend."""
        state = directory / "handler"
        state.mkdir()
        context = RuntimeContext("namespaces", {}, directory, state, parent, host.supervisor)
        return cls(directory, root, host, parent, await open_backend(context))

    async def pod(self, modes: NamespaceOptions = OWN_PIDS, **fields: Any) -> Pod:
        """Run a sandbox; ``fields`` are those of `SandboxConfig`.

        It is privileged, as a kubelet says of a pod of which any container is.
        """
        fields.setdefault("security", SandboxSecurity(namespaces=modes, privileged=True))
        metadata = PodMetadata(f"pod-{new_id()[:8]}", new_id(), "tests")
        config = SandboxConfig(metadata, **{"hostname": "pod", **fields})
        check_sandbox(self.handler, config)
        kinds = sandbox_namespaces(self.handler.type.sandbox_namespaces, config)
        sandbox_id = SandboxId(new_id())
        sysctls = self.assembler.sysctls(config)
        files = self.assembler.sandbox_files(config)
        made = await self.host.supervisor.make_namespaces(
            sandbox_id, kinds, hostname=config.hostname, sysctls=sysctls, ids=pod_maps(config)
        )
        place = self.directory / sandbox_id
        place.mkdir(mode=0o700)
        for name, text in files.items():
            (place / name).write_text(text)
        spec = SandboxSpec(sandbox_id, config, made, place, f"{self.parent}/{sandbox_id}")
        pod = Pod(self, spec)
        self._pods.append(pod)
        await self.backend.create_sandbox(spec)
        return pod

    async def close(self) -> None:
        """Stop and remove everything."""
        try:
            for pod in self._pods:
                await pod.close()
        finally:
            self._listener.cancel()
            await self.backend.close()
            self.assembler.close()


class Pod:
    """A sandbox that runs."""

    def __init__(self, bench: Bench, spec: SandboxSpec) -> None:
        self.bench = bench
        self.spec = spec
        self.boxes: list[Box] = []
        self._gone = False

    async def config(
        self,
        container_id: ContainerId,
        command: str | Sequence[str],
        image: ImageConfig,
        users: Mapping[str, bytes],
        **fields: Any,
    ) -> tuple[ContainerConfig, OciConfig]:
        """Return a request and what core makes of it; a text is a shell script."""
        args = ("/bin/sh", "-c", command) if isinstance(command, str) else tuple(command)
        fields.setdefault("security", security(namespaces=self.spec.config.security.namespaces))
        request = ContainerConfig(
            ContainerMetadata("box"), ImageSpec("localhost/box"), **{"command": args, **fields}
        )
        check_container(self.bench.handler, self.spec.config, request)
        stored = Image(
            ImageId(f"sha256:{new_id()}"), (), (), 1, image, Digest(f"sha256:{new_id()}")
        )
        built = await self.bench.assembler.container(
            ConfigRequest(
                container_id,
                self.spec,
                request,
                stored,
                cast(ImageStore, _ImageFiles(users)),
                f"{self.spec.cgroup}/{container_id}",
            )
        )
        return request, built.oci

    async def create(
        self,
        command: str | Sequence[str],
        *,
        layers: Sequence[Path] = (),
        root: Rootfs | None = None,
        image: ImageConfig | None = None,
        users: Mapping[str, bytes] | None = None,
        adjust: Adjust | None = None,
        stdin: bool = False,
        **fields: Any,
    ) -> Box:
        """Create a container.

        Args:
            command: a shell script, or arguments.
            layers: layers of the image above busybox, topmost first.
            root: instead of the overlay.
            image: the image's config.
            users: path → content of the image's user database.
            adjust: changes the OCI config, as a plugin's hook might.
            stdin: keep a pipe to its stdin.
            fields: of `ContainerConfig`.
        """
        container_id = ContainerId(new_id())
        request, config = await self.config(
            container_id, command, image or ImageConfig(), users or {}, **fields
        )
        if adjust is not None:
            config = adjust(config)
        place = self.spec.directory / container_id
        (place / "upper").mkdir(parents=True)
        (place / "work").mkdir()
        overlay = OverlayRootfs((*layers, self.bench.root), place / "upper", place / "work")
        box = Box(self, container_id, config, terminal=config.process.terminal, stdin=stdin)
        self.boxes.append(box)
        spec = ContainerSpec(
            container_id,
            self.spec,
            request,
            config,
            overlay if root is None else root,
            box.stdio,
            place,
            f"{self.spec.cgroup}/{container_id}",
        )
        await self.bench.backend.create(spec)
        return box

    async def start(self, command: str | Sequence[str], **options: Any) -> Box:
        """Create and start."""
        box = await self.create(command, **options)
        await box.start()
        return box

    async def run(self, command: str | Sequence[str], **options: Any) -> Result:
        """Run a container to its end, and delete it; an error is part of the result."""
        try:
            box = await self.start(command, **options)
            return await box.ended()
        except PolypodError as error:
            return Result(error=str(error), kind=type(error).__name__)
        finally:
            await self.boxes[-1].delete() if self.boxes else None

    async def close(self) -> None:
        """Stop, remove, give everything back. Idempotent."""
        if self._gone:
            return
        self._gone = True
        backend = self.bench.backend
        await backend.stop_sandbox(self.spec.id)
        for box in self.boxes:
            await box.delete()
        await backend.remove_sandbox(self.spec.id)
        await self.bench.host.supervisor.drop_namespaces(self.spec.id)
        made = self.spec.namespaces
        if made is not None:
            for fd in (*made.fds.values(), made.netlink):
                if fd is not None:
                    os.close(fd)
        mounts = Path("/proc/self/mountinfo").read_text()
        assert str(self.spec.directory) not in mounts, "something is mounted below the sandbox"
        shutil.rmtree(self.spec.directory)


class Box:
    """A container."""

    def __init__(
        self, pod: Pod, container_id: ContainerId, config: OciConfig, *, terminal: bool, stdin: bool
    ) -> None:
        self.pod = pod
        self.id = container_id
        self.config = config
        self.output = FakeCaptured(_OUTPUT_BYTES)
        theirs, self.stdin = os.pipe() if stdin else (None, None)
        self.stdio = Stdio(theirs, self.output.stdio.stdout, self.output.stdio.stderr)
        self._console: socket.socket | None = None
        if terminal:
            self._console, far = socket.socketpair()
            self.stdio = Stdio(console=far.detach())
        self._theirs = [fd for fd in (theirs, self.stdio.console) if fd is not None]
        self._masters: list[int] = []
        self._gone = False

    async def start(self) -> None:
        """Start it."""
        try:
            await self.pod.bench.backend.start(self.id)
        finally:
            self._release()

    def _release(self) -> None:
        self.output.started()
        while self._theirs:
            os.close(self._theirs.pop())

    def terminal(self) -> int:
        """Return the master of its pty, once it has started; closed with the box."""
        assert self._console is not None
        self._console.settimeout(WAIT_S)
        _, fds, _, _ = socket.recv_fds(self._console, 64, 1)
        self._masters += fds
        return fds[0]

    async def status(self) -> BackendStatus:
        """Return what the backend says."""
        return await self.pod.bench.backend.status(self.id)

    async def pid(self) -> int:
        """Return the pid on the host."""
        found = (await self.status()).pid
        assert found is not None
        return found

    async def says(self, text: str) -> str:
        """Return stdout once a text is in it."""
        written = b""
        async with asyncio.timeout(WAIT_S):
            while text.encode() not in written:
                await asyncio.sleep(0.005)
                written, errors = await self.output.collect()
                assert (await self.status()).state is BackendState.RUNNING, (written, errors)
        return written.decode(errors="replace")

    async def ended(self) -> Result:
        """Return the result of the first process, once it is gone."""
        async with asyncio.timeout(WAIT_S):
            while (status := await self.status()).exit is None:
                await asyncio.sleep(0.003)
        out, err = await self.output.collect()
        assert status.exit is not None
        return Result(
            status.exit.code, out.decode(errors="replace"), err.decode(errors="replace"),
            oom=status.oom_killed,
        )  # fmt: skip

    async def terminal_session(self, command: str | Sequence[str]) -> tuple[Session, int]:
        """Begin an extra process on a terminal; the master is closed with the box."""
        args = ("/bin/sh", "-c", command) if isinstance(command, str) else tuple(command)
        process = replace(self.config.process, args=args, terminal=True)
        near, far = socket.socketpair()
        with near, far:
            spec = ExecSpec(
                ExecId(new_id()), self.id, process, Stdio(console=far.fileno()), self.config
            )
            session = await self.pod.bench.backend.exec(spec)
            near.settimeout(WAIT_S)
            _, fds, _, _ = socket.recv_fds(near, 64, 1)
        self._masters += fds
        return session, fds[0]

    async def session(
        self, command: str | Sequence[str], adjust: Callable[[Process], Process] | None = None
    ) -> tuple[Session, FakeCaptured]:
        """Begin an extra process, as ExecSync does."""
        args = ("/bin/sh", "-c", command) if isinstance(command, str) else tuple(command)
        process = replace(self.config.process, args=args, terminal=False)
        if adjust is not None:
            process = adjust(process)
        output = FakeCaptured(_OUTPUT_BYTES)
        spec = ExecSpec(ExecId(new_id()), self.id, process, output.stdio, self.config)
        try:
            session = await self.pod.bench.backend.exec(spec)
        except BaseException:
            output.close()
            raise
        output.started()
        return session, output

    async def exec(
        self, command: str | Sequence[str], adjust: Callable[[Process], Process] | None = None
    ) -> Result:
        """Run an extra process to its end; an error is part of the result."""
        try:
            session, output = await self.session(command, adjust)
        except PolypodError as error:
            return Result(error=str(error), kind=type(error).__name__)
        try:
            async with asyncio.timeout(WAIT_S):
                status = await session.wait()
            out, err = await output.collect()
        finally:
            output.close()
        return Result(status.code, out.decode(errors="replace"), err.decode(errors="replace"))

    async def kill(self, number: int = signal.SIGKILL) -> Result:
        """Signal it and return its result."""
        await self.pod.bench.backend.kill(self.id, number)
        return await self.ended()

    async def delete(self) -> None:
        """Delete it. Idempotent."""
        if self._gone:
            return
        self._gone = True
        with contextlib.ExitStack() as stack:
            stack.callback(self._close)
            await self.pod.bench.backend.delete(self.id)

    def _close(self) -> None:
        self._release()
        for fd in (self.stdin, *self._masters):
            if fd is not None:
                os.close(fd)
        if self._console is not None:
            self._console.close()
        self.output.close()
