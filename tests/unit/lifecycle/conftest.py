"""Doubles for everything around the heart, small and honest: what is made can be counted."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from polypod.lifecycle.core import Core
from polypod.lifecycle.parts import Handler, Parts, Settings
from polypod.lifecycle.ports import BuiltConfig
from polypod.plugin.errors import BackendError, InvalidArgument, NotFound
from polypod.plugin.images import FilesystemUsage, Image, ImageConfig
from polypod.plugin.network import Attachment, NetworkStatus
from polypod.plugin.oci import OciConfig, Process
from polypod.plugin.requests import (
    ContainerConfig,
    ContainerMetadata,
    ImageSpec,
    PodMetadata,
    SandboxConfig,
)
from polypod.plugin.rootfs import DirectoryRootfs, RootfsForm
from polypod.plugin.runtime import (
    BackendState,
    BackendStatus,
    ContainerExited,
    ContainerUsage,
    Feature,
    Inventory,
    RuntimeType,
    SandboxDied,
)
from polypod.plugin.services import ExitStatus, SandboxNamespaces, Stdio
from polypod.spec.resources import CgroupFacts, oci_resources
from polypod.spec.updates import overlay
from polypod.store.database import Database
from polypod.testing.fake_urls import FakeUrls

IMAGE = Image(
    id="sha256:" + "1" * 64,
    repo_tags=("localhost/demo:latest",),
    repo_digests=("localhost/demo@sha256:" + "2" * 64,),
    size_bytes=1,
    config=ImageConfig(cmd=("sh",)),
    manifest_digest="sha256:" + "2" * 64,
)


class ManualClock:
    """Time passes when a test says so."""

    def __init__(self) -> None:
        self.time = 1000.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now_ns(self) -> int:
        return int(self.time * 1e9)

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float, /) -> None:
        future = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.time + seconds, future))
        await future

    async def advance(self, seconds: float) -> None:
        await settle()
        self.time += seconds
        due = [each for each in self._sleepers if each[0] <= self.time]
        self._sleepers = [each for each in self._sleepers if each[0] > self.time]
        for _, future in due:
            if not future.done():
                future.set_result(None)
        await settle()


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(60):
        await asyncio.sleep(0)


class Faults:
    """What shall go wrong: method name → errors to raise, one per call."""

    def __init__(self) -> None:
        self.errors: dict[str, list[BaseException]] = defaultdict(list)
        self.gates: dict[str, asyncio.Event] = {}
        self.calls: list[str] = []

    async def pass_(self, name: str) -> None:
        self.calls.append(name)
        if name in self.gates:
            await self.gates[name].wait()
        if self.errors[name]:
            raise self.errors[name].pop(0)


class World:
    """The host that survives a restart of the daemon."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.namespaces: dict[str, frozenset[str]] = {}
        self.leases: dict[str, str] = {}
        self.sandboxes: dict[str, bool] = {}
        self.containers: dict[str, BackendStatus] = {}
        self.rootfs: set[str] = set()
        self.streams: set[str] = set()
        self.images = {IMAGE.id: IMAGE}
        self.queues: list[asyncio.Queue[object]] = []
        self.ignores_signals: set[str] = set()
        self.signals: list[tuple[str, int]] = []
        self.specs: dict[str, object] = {}
        self.limits: dict[str, object] = {}

    def nothing_left(self) -> bool:
        return not (
            self.namespaces
            or self.leases
            or self.sandboxes
            or self.containers
            or self.rootfs
            or self.streams
        )

    def end(self, container_id: str, code: int | None, *, oom: bool = False, tell=True) -> None:
        status = ExitStatus(code, finished_at_ns=2_000_000_000_000)
        self.containers[container_id] = replace(
            self.containers[container_id],
            state=BackendState.STOPPED,
            exit=status,
            oom_killed=oom,
            pid=None,
        )
        if tell:
            for queue in self.queues:
                queue.put_nowait(ContainerExited(container_id, status, oom))

    def die(self, sandbox_id: str) -> None:
        self.sandboxes[sandbox_id] = False
        for queue in self.queues:
            queue.put_nowait(SandboxDied(sandbox_id, "its holder was killed"))


class FakeSupervisor:
    def __init__(self, world: World) -> None:
        self.world = world

    async def make_namespaces(self, sandbox_id, kinds, /, *, hostname="", sysctls=None):
        self.world.namespaces[sandbox_id] = kinds
        await self.world.faults.pass_("make_namespaces")
        return self._open(sandbox_id)

    def _open(self, sandbox_id):
        kinds = self.world.namespaces[sandbox_id]
        fds = {kind: os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for kind in kinds}
        netlink = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) if "network" in kinds else None
        return SandboxNamespaces(sandbox_id, fds, netlink)

    async def namespaces(self, sandbox_id, /):
        return self._open(sandbox_id) if sandbox_id in self.world.namespaces else None

    async def list_namespaces(self):
        return list(self.world.namespaces)

    async def drop_namespaces(self, sandbox_id, /):
        await self.world.faults.pass_("drop_namespaces")
        self.world.namespaces.pop(sandbox_id, None)


class FakeNetwork:
    def __init__(self, world: World) -> None:
        self.world = world

    async def attach(self, request, /):
        await self.world.faults.pass_("attach")
        address = f"10.0.0.{len(self.world.leases) + 2}"
        self.world.leases[request.sandbox_id] = address
        return Attachment((address,), {"interface": "eth0"})

    async def detach(self, sandbox_id, attachment, /):
        await self.world.faults.pass_("detach")
        self.world.leases.pop(sandbox_id, None)

    async def attached(self):
        return list(self.world.leases)

    async def configure(self, pod_cidrs, /):
        self.world.faults.calls.append(f"configure {list(pod_cidrs)}")

    async def status(self):
        await self.world.faults.pass_("network_status")
        return NetworkStatus(ready=True)

    async def close(self):
        return None


class FakeStore:
    def __init__(self, world: World, root: Path) -> None:
        self.world = world
        self.root = root

    async def list(self):
        return list(self.world.images.values())

    async def find(self, reference, /):
        for image in self.world.images.values():
            if reference == image.id or reference in (*image.repo_tags, *image.repo_digests):
                return image
        return None

    async def pull(self, reference, /, *, auth=None, progress=None):
        await self.world.faults.pass_("pull")
        self.world.images[IMAGE.id] = IMAGE
        return IMAGE

    async def remove(self, image_id, /):
        self.world.images.pop(image_id, None)

    async def prepare(self, container_id, image_id, form, /):
        self.world.rootfs.add(container_id)
        await self.world.faults.pass_("prepare")
        return DirectoryRootfs(self.root / container_id)

    async def image_file(self, image_id, path, limit, /):
        return None

    async def release(self, container_id, /):
        await self.world.faults.pass_("release")
        self.world.rootfs.discard(container_id)

    async def prepared(self):
        return list(self.world.rootfs)

    async def writable_usage(self, container_id, /):
        return None

    async def filesystem_usage(self):
        return FilesystemUsage(1, self.root, 0, 0)

    async def close(self):
        return None


class FakeSession:
    def __init__(self, world: World) -> None:
        self.world = world
        self.done = asyncio.Event()
        self.killed: list[int] = []
        self.code = 0

    async def wait(self):
        await self.done.wait()
        return ExitStatus(self.code)

    async def kill(self, signal, /):
        self.killed.append(signal)
        self.done.set()

    async def resize(self, *, width, height):
        return None


class FakeBackend:
    def __init__(self, world: World) -> None:
        self.world = world
        self.sessions: list[FakeSession] = []
        self.cpu_ns = 0

    async def create_sandbox(self, spec, /):
        self.world.specs[spec.id] = spec
        self.world.sandboxes[spec.id] = True
        await self.world.faults.pass_("create_sandbox")

    async def stop_sandbox(self, sandbox_id, /):
        await self.world.faults.pass_("stop_sandbox")

    async def remove_sandbox(self, sandbox_id, /):
        await self.world.faults.pass_("remove_sandbox")
        self.world.sandboxes.pop(sandbox_id, None)

    async def create(self, spec, /):
        self.world.specs[spec.id] = spec
        await self.world.faults.pass_("create")
        self.world.containers[spec.id] = BackendStatus(
            spec.id, spec.sandbox.id, BackendState.CREATED
        )

    async def start(self, container_id, /):
        await self.world.faults.pass_("start")
        status = replace(self.world.containers[container_id], state=BackendState.RUNNING, pid=77)
        self.world.containers[container_id] = status
        return status

    async def kill(self, container_id, signal, /, *, whole=False):
        await self.world.faults.pass_("kill")
        self.world.signals.append((container_id, signal))
        status = self.world.containers.get(container_id)
        if status is None or status.state is BackendState.STOPPED:
            return
        if signal == 9 or container_id not in self.world.ignores_signals:
            self.world.end(container_id, 128 + signal)

    async def delete(self, container_id, /):
        await self.world.faults.pass_("delete")
        status = self.world.containers.get(container_id)
        if status is not None and status.state is BackendState.RUNNING:
            raise BackendError("it still runs")
        self.world.containers.pop(container_id, None)

    async def update(self, container_id, resources, /):
        await self.world.faults.pass_("update")
        self.world.limits[container_id] = resources

    async def resize(self, sandbox_id, limits, /):
        await self.world.faults.pass_("resize")
        self.world.limits[sandbox_id] = limits

    async def status(self, container_id, /):
        if container_id not in self.world.containers:
            raise NotFound(container_id)
        return self.world.containers[container_id]

    async def list(self):
        return Inventory(dict(self.world.sandboxes), dict(self.world.containers))

    async def events(self):
        queue: asyncio.Queue[object] = asyncio.Queue()
        self.world.queues.append(queue)
        try:
            while True:
                event = await queue.get()
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.world.queues.remove(queue)

    async def close(self):
        return None

    async def exec(self, spec, /):
        await self.world.faults.pass_("exec")
        session = FakeSession(self.world)
        self.sessions.append(session)
        return session

    async def stats(self, container_ids, /):
        await self.world.faults.pass_("stats")
        self.cpu_ns += 500_000_000
        now = 1_000_000_000 + 2 * self.cpu_ns
        return {each: ContainerUsage(now, cpu_usage_core_ns=self.cpu_ns) for each in container_ids}


class FakeCaptured:
    def __init__(self) -> None:
        self.stdio = Stdio()
        self.closed = False

    def started(self):
        return None

    async def collect(self):
        return b"out", b"err"

    def close(self):
        self.closed = True


class FakeLogs:
    def __init__(self, world: World) -> None:
        self.world = world

    async def open(self, container_id, log_path, /, *, base, tty, stdin, stdin_once):
        base.mkdir(parents=True, exist_ok=True)
        self.world.streams.add(container_id)
        await self.world.faults.pass_("open_log")
        return Stdio(stdout=os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC))

    async def reopen(self, container_id, log_path, /, *, base):
        await self.world.faults.pass_("reopen")

    async def drained(self, container_id, /):
        await self.world.faults.pass_("drained")

    async def close(self, container_id, /):
        self.world.streams.discard(container_id)

    def capture(self, *, limit_bytes):
        return FakeCaptured()


class FakeHooks:
    def __init__(self, world: World) -> None:
        self.world = world
        self.told: list[tuple[str, str]] = []
        self.choice: str | None = None
        self.limits = None

    def choose_handler(self, request, /):
        return self.choice

    async def adjust(self, container_id, sandbox_id, sandbox, request, config, /):
        await self.world.faults.pass_("adjust")
        return config

    async def before_sandbox_ready(self, sandbox, /):
        self.told.append(("before ready", sandbox.id))
        await self.world.faults.pass_("before ready")

    async def before_container_start(self, container, /):
        self.told.append(("before start", container.id))
        await self.world.faults.pass_("before start")

    async def adjust_update(self, container, resources, /):
        await self.world.faults.pass_("adjust update")
        return self.limits or resources

    async def before_sandbox_resize(self, sandbox, limits, /):
        await self.world.faults.pass_("before resize")

    async def before_sandbox_stop(self, sandbox, /):
        self.told.append(("before stop", sandbox.id))
        await self.world.faults.pass_("before stop")

    def notify_sandbox_resized(self, sandbox, /):
        self.told.append(("resized", sandbox.id))

    def notify_container_created(self, container, /):
        self.told.append(("created", container.id))

    def notify_container_updated(self, container, /):
        self.told.append(("updated", container.id))

    def notify_sandbox_ready(self, sandbox_id, sandbox, handler, /):
        self.told.append(("ready", sandbox_id))

    def notify_sandbox_stopped(self, sandbox_id, /):
        self.told.append(("stopped", sandbox_id))

    def notify_sandbox_removed(self, sandbox_id, /):
        self.told.append(("removed", sandbox_id))

    def notify_container_started(self, container_id, pid, /):
        self.told.append(("started", container_id))

    def notify_container_exited(self, container_id, status, /):
        self.told.append(("exited", container_id))

    def notify_container_removed(self, container_id, /):
        self.told.append(("container removed", container_id))


class FakeBuilder:
    def sysctls(self, config, /):
        return config.sysctls

    def sandbox_files(self, config, addresses=(), /):
        if "/" in config.hostname:
            raise InvalidArgument(f"hostname {config.hostname!r}")
        return {"hostname": config.hostname + "\n", "hosts": " ".join(addresses)}

    def limits(self, config, change, /):
        if change.cpu_shares < 0:
            raise InvalidArgument("negative cpu_shares")
        resources = overlay(config.linux.resources, oci_resources(change, CgroupFacts()))
        return replace(config, linux=replace(config.linux, resources=resources))

    async def container(self, request, /):
        config = request.config
        env = tuple(f"{k}={v.decode()}" for k, v in config.envs)
        process = Process(args=config.command + config.args, env=env)
        return BuiltConfig(OciConfig(process), config.stop_signal or 15)


class Bench:
    """A daemon that can be killed and started again over the same world."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.world = World()
        self.clock = ManualClock()
        self.boot = "boot-1"
        self.failpoints = ""
        self.hooks = FakeHooks(self.world)
        self.backend = FakeBackend(self.world)
        self.settings = Settings(close_s=0.05)
        self.urls = FakeUrls()
        self.core: Core

    def parts(self) -> Parts:
        store = FakeStore(self.world, self.directory / "images")
        type_ = RuntimeType(
            name="fake",
            summary="for tests",
            open=None,
            rootfs_forms=(RootfsForm.DIRECTORY,),
            features=frozenset(Feature) - {Feature.SELINUX},
            sandbox_namespaces=frozenset({"network", "ipc", "uts", "pid"}),
        )
        bare = replace(type_, name="bare", features=frozenset())
        handlers = {
            "fake": Handler("fake", type_, self.backend, store),
            "bare": Handler("bare", bare, FakeBackend(World()), store),
        }
        for name in ("root", "state"):
            (self.directory / name).mkdir(exist_ok=True)
        self.database = Database(self.directory / "root" / "polypod.db", self.boot)
        return Parts(
            handlers=handlers,
            default_handler="fake",
            image_store=store,
            network=FakeNetwork(self.world),
            supervisor=FakeSupervisor(self.world),
            logs=FakeLogs(self.world),
            hooks=self.hooks,
            builder=FakeBuilder(),
            urls=self.urls,
            database=self.database,
            root=self.directory / "root",
            state=self.directory / "state",
            state_files=self.directory / "published",
            clock=self.clock,
            settings=self.settings,
            failpoints=self.failpoints,
        )

    async def start(self) -> Core:
        self.core = Core(self.parts())
        self.recovered = await self.core.open()
        await settle()
        return self.core

    async def stop(self) -> None:
        await self.core.close()
        self.database.close()

    async def restart(self) -> Core:
        await self.stop()
        return await self.start()

    def sandbox_config(self, name="pod", **changes) -> SandboxConfig:
        logs = str(self.directory / "logs")
        metadata = PodMetadata(name, f"uid-{name}", "default", 0)
        return replace(SandboxConfig(metadata, hostname=name, log_directory=logs), **changes)

    def container_config(self, name="main", **changes) -> ContainerConfig:
        config = ContainerConfig(
            ContainerMetadata(name, 0),
            ImageSpec(IMAGE.id),
            command=("sleep", "9"),
            log_path=f"{name}.log",
        )
        return replace(config, **changes)

    async def pod(self, name="pod") -> str:
        return await self.core.run_sandbox(self.sandbox_config(name), "")

    async def running(self, name="pod") -> tuple[str, str]:
        sandbox = await self.pod(name)
        container = await self.core.create_container(sandbox, self.container_config(), None)
        await self.core.start_container(container)
        return sandbox, container


@pytest.fixture
async def bench(tmp_path):
    """A started core."""
    made = Bench(tmp_path)
    await made.start()
    yield made
    await made.stop()
