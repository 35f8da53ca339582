"""The runtime's commands, one function each: bundles and files in, a process taken over out.

Everything that blocks on the host's file systems runs in a thread.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from polypod.backend import usage
from polypod.backend.cgroups import Cgroups
from polypod.backend.containers import Container
from polypod.backend.mounts import (
    SharedMemory,
    bind_mounts,
    check_propagation,
    mount_rootfs,
    unmount,
)
from polypod.backend.sessions import exec_group
from polypod.plugin import (
    BackendError,
    BlockRootfs,
    ContainerId,
    ContainerSpec,
    DirectoryRootfs,
    ErofsRootfs,
    ExecSpec,
    Feature,
    Launched,
    OverlayRootfs,
    ProcessId,
    Resources,
    Stdio,
    Supervisor,
    Unsupported,
)
from polypod.spec.resources import CgroupFacts, oci_resources
from polypod_oci import config as documents
from polypod_oci.console import ConsoleSocket
from polypod_oci.features import Facts
from polypod_oci.inventory import Bundle
from polypod_oci.tool import Tool, both

_log = logging.getLogger(__name__)


class Calls:
    """One handler's runtime, with its bundles."""

    def __init__(
        self,
        tool: Tool,
        facts: tuple[Facts, bool],
        supervisor: Supervisor,
        cgroups: Cgroups,
        bundles: Path,
    ) -> None:
        self.tool = tool
        self._facts, self._exec_groups = facts
        self._supervisor = supervisor
        self._cgroups = cgroups
        self._bundles = bundles
        self._shm = SharedMemory()
        bundles.mkdir(mode=0o700, exist_ok=True)

    @property
    def features(self) -> frozenset[Feature]:
        """What the runtime can do."""
        return self._facts.features

    def bundle(self, container_id: ContainerId) -> Bundle:
        """Return where a container's bundle is, or would be."""
        return Bundle(self._bundles / container_id)

    def bundles(self) -> Sequence[Bundle]:
        """Return those that an earlier daemon made."""
        return [Bundle(path) for path in sorted(self._bundles.iterdir())]

    # create

    def prepare(self, spec: ContainerSpec, container: Container, target: int) -> Bundle:
        """Make the bundle: note, root file system, ``config.json``. On failure `discard` undoes it.

        Raises:
            BackendError: the host refused something.
            Unsupported: the configuration has what this runtime cannot do.
        """
        binds = bind_mounts(spec.config)
        check_propagation(binds)
        bundle = self.bundle(spec.id)
        bundle.make(container)
        root = _mount_root(spec, bundle)
        shm = spec.sandbox.directory / "shm"
        if any(item.source == str(shm) for item in binds):
            self._shm.ensure(shm)
        document = documents.bundle_config(
            spec.config,
            version=self._facts.version,
            root=str(root),
            cgroup=spec.cgroup,
            namespaces=_namespaces(spec, target),
        )
        bundle.write("config.json", documents.config_text(document))
        return bundle

    async def create(
        self, bundle: Bundle, stdio: Stdio, process_id: ProcessId, labels: Mapping[str, str]
    ) -> Launched:
        """Run ``create`` and take over the process that it leaves."""
        return await self.make(bundle, stdio, process_id, labels, ["create"])

    async def make(
        self,
        bundle: Bundle,
        stdio: Stdio,
        process_id: ProcessId,
        labels: Mapping[str, str],
        command: Sequence[str],
    ) -> Launched:
        """Run a command that makes a container of a bundle and leaves its process; take that over."""
        words = [*command, "--bundle", str(bundle.path), "--pid-file", str(bundle.pid_file)]
        await self._with_console(words, bundle.path.name, bundle, stdio, "console")
        pid = _pid(bundle.pid_file, self.tool.name)
        return await self._supervisor.adopt(process_id, pid, labels=labels)

    async def _with_console(
        self, words: list[str], last: str, bundle: Bundle, stdio: Stdio, name: str
    ) -> None:
        if stdio.console is None:
            # Output that nobody wants must not end in our own file, which ends with the command.
            await self.tool.run(*words, last, stdio=stdio)
            return
        with ConsoleSocket(bundle.path, name) as socket:
            forward = asyncio.ensure_future(socket.forward(stdio.console))
            await both(self.tool.run(*words, "--console-socket", socket.path, last), forward)

    async def discard(self, container_id: ContainerId) -> None:
        """Remove all that the runtime and we have made of a container. Idempotent.

        One that the runtime cannot delete, because it is half made or its own notes are broken, must
        not stay for ever: its processes are ended by its cgroup, and the notes go with the rest.
        """
        try:
            await self.tool.run("delete", "--force", container_id)
        except BackendError as error:
            _log.warning("container %s: removed without the runtime: %s", container_id, error)
        await asyncio.to_thread(self._discard, self.bundle(container_id))

    def _discard(self, bundle: Bundle) -> None:
        cgroup = bundle.read().cgroup
        if cgroup:
            self._cgroups.end(cgroup)
        unmount(bundle.rootfs)
        bundle.remove()
        shutil.rmtree(self.tool.root / bundle.path.name, ignore_errors=True)

    # the others

    async def start(self, container_id: ContainerId) -> None:
        """Run ``start``."""
        await self.tool.run("start", container_id)
        self.bundle(container_id).mark_started()

    async def was_started(self, container_id: ContainerId) -> bool:
        """Tell whether a living container was started: by our mark, else by ``state``."""
        if self.bundle(container_id).is_marked_started():
            return True
        return await self._state(container_id) != "created"

    async def is_paused(self, container_id: ContainerId) -> bool:
        """Tell whether a container stands still."""
        return await self._state(container_id) == "paused"

    async def _state(self, container_id: ContainerId) -> str:
        return str(json.loads(await self.tool.run("state", container_id)).get("status"))

    async def kill(self, container_id: ContainerId, signal: int, *, whole: bool) -> None:
        """Run ``kill``."""
        await self.tool.run("kill", *(["--all"] if whole else []), container_id, str(signal))

    async def update(self, container: Container, resources: Resources) -> None:
        """Run ``update``: the runtime sets all of them or puts back what was."""
        bundle = self.bundle(container.id)
        text = await asyncio.to_thread(self._resources, container.cgroup, resources)
        path = bundle.write("resources.json", text)
        try:
            await self.tool.run("update", "--resources", str(path), container.id)
        finally:
            path.unlink()

    def _resources(self, cgroup: str, resources: Resources) -> bytes:
        directory = self._cgroups.directory("memory", cgroup)
        swap = usage.number(directory, "memory.memsw.limit_in_bytes")
        facts = CgroupFacts(
            version=self._cgroups.version,
            swap_accounting=self._cgroups.version == 2 or swap is not None,
        )
        wanted = resources
        memory = resources.memory_limit_in_bytes
        if swap is not None and memory > swap and not resources.memory_swap_limit_in_bytes:
            # Memory may never be above memory and swap together, and runtimes leave that to us.
            wanted = replace(resources, memory_swap_limit_in_bytes=memory)
        return documents.resources_text(oci_resources(wanted, facts))

    async def exec(
        self, spec: ExecSpec, container: Container, labels: Mapping[str, str]
    ) -> tuple[Launched, str]:
        """Run ``exec`` and take over its process; return it with its cgroup, ``""`` = the container's."""
        bundle = self.bundle(container.id)
        short = spec.id[:16]
        pid_file = bundle.path / f"exec-{short}.pid"
        process = bundle.write(f"exec-{short}.json", documents.process_text(spec.process))
        words = ["exec", "--process", str(process), "--detach", "--pid-file", str(pid_file)]
        group = exec_group(container, spec) if self._exec_groups else ""
        try:
            if group:
                await asyncio.to_thread(self._cgroups.create_child, group)
                words += ["--cgroup", Path(group).name]
            await self._with_console(words, container.id, bundle, spec.stdio, f"exec-{short}")
            pid = _pid(pid_file, self.tool.name)
            return await self._supervisor.adopt(ProcessId(spec.id), pid, labels=labels), group
        except BaseException:
            if group:
                await asyncio.to_thread(self._cgroups.end, group)
            raise
        finally:
            process.unlink()
            pid_file.unlink(missing_ok=True)


def _mount_root(spec: ContainerSpec, bundle: Bundle) -> Path:
    match spec.rootfs:
        case OverlayRootfs() | ErofsRootfs():
            mount_rootfs(spec.rootfs, bundle.rootfs)
            return bundle.rootfs
        case DirectoryRootfs(path):
            return path
        case BlockRootfs(path):
            raise Unsupported(f"{path}: block images cannot be a root file system here")


def _namespaces(spec: ContainerSpec, target: int) -> dict[str, str]:
    """Return paths for what core names: descriptors of ours, as other processes reach them."""
    held = spec.sandbox.namespaces.fds if spec.sandbox.namespaces is not None else {}
    found = {f"sandbox:{kind}": f"/proc/{os.getpid()}/fd/{fd}" for kind, fd in held.items()}
    for item in spec.config.linux.namespaces:
        if item.path.startswith("container:") and target:
            found[item.path] = f"/proc/{target}/ns/{item.type}"
    return found


def _pid(path: Path, name: str) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError) as error:
        raise BackendError(f"{name}: it told no pid of the process that it made") from error
