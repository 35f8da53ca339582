"""The heart's front: everything that the wire may ask, one short method each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from polypod.lifecycle.checkpoints import Checkpoints
from polypod.lifecycle.containers import Containers
from polypod.lifecycle.creating import Creating
from polypod.lifecycle.events import Events
from polypod.lifecycle.execs import Execs
from polypod.lifecycle.facts import container_facts, sandbox_facts, snapshot
from polypod.lifecycle.feed import Reader, shown_containers
from polypod.lifecycle.handling import Handling
from polypod.lifecycle.heart import Heart
from polypod.lifecycle.images import Images
from polypod.lifecycle.listing import (
    list_containers,
    list_sandboxes,
    select_containers,
    select_sandboxes,
)
from polypod.lifecycle.metrics import Metrics
from polypod.lifecycle.objects import Container, Sandbox
from polypod.lifecycle.parts import Parts
from polypod.lifecycle.pod_stats import PodStats
from polypod.lifecycle.recovery import Recovered, Recovery
from polypod.lifecycle.restoring import Restoring
from polypod.lifecycle.sandboxes import Sandboxes
from polypod.lifecycle.starting import Starting
from polypod.lifecycle.stats import Stats
from polypod.lifecycle.status import server_status
from polypod.lifecycle.streams import Streams
from polypod.lifecycle.tasks import Background
from polypod.lifecycle.teardown import Teardown
from polypod.lifecycle.updating import Updating, pod_resources
from polypod.lifecycle.views import (
    Census,
    ContainerState,
    ContainerView,
    ExecResult,
    Filter,
    MetricDescriptor,
    PodMetricsView,
    PodStatsView,
    SandboxState,
    SandboxView,
    StatsView,
    StatusView,
    StreamChoice,
)
from polypod.plugin.errors import FailedPrecondition, NotFound, Unavailable
from polypod.plugin.ids import ContainerId, SandboxId
from polypod.plugin.images import FilesystemUsage, Image, PullProgress
from polypod.plugin.observer import ContainerFacts, SandboxFacts, Snapshot
from polypod.plugin.requests import Auth, ContainerConfig, Resources, SandboxConfig


class Core:
    """Implements `polypod.lifecycle.views.Lifecycle`. Build it, `open` it, `close` it."""

    def __init__(self, parts: Parts) -> None:
        self._ready = False
        self._heart = heart = Heart(parts)
        self._background = background = Background()
        self._containers = containers = Containers(heart, background)
        self._teardown = teardown = Teardown(heart, containers)
        self._sandboxes = Sandboxes(heart, teardown)
        self._creating = Creating(heart, containers)
        self._starting = Starting(heart)
        self._checkpoints = Checkpoints(heart)
        self._restoring = Restoring(heart, self._sandboxes, self._creating, teardown)
        self._execs = Execs(heart)
        self._streams = Streams(heart)
        self._images = Images(heart)
        self._stats = Stats(heart)
        self._pod_stats = PodStats(heart, self._stats)
        self._metrics = Metrics(heart, self._pod_stats)
        self._updating = Updating(heart)
        self._events = Events(heart, containers, teardown, background)
        self.handling = Handling(heart, self._events, background)
        """For the composition root: exchanges handlers while the server runs."""
        self.info: dict[str, object] = {}
        """What the composition root adds to the verbose Status."""

    async def open(self) -> Recovered:
        """Recover what the last daemon left, then listen to the backends; calls are answered after it."""
        heart = self._heart
        recovery = Recovery(heart, self._containers, self._teardown, self._events)
        recovered = await recovery.run()
        self._restoring.clean()
        for handler in heart.parts.handlers.values():
            self.handling.listen(handler)
        self._background.spawn("stats", self._stats.watch())
        self._background.spawn("stats of pods", self._pod_stats.watch())
        self._ready = True
        return recovered

    async def close(self) -> None:
        """Stop answering, let calls in flight end or be rolled back; workloads go on."""
        self._ready = False
        await self._heart.joins.close(self._heart.settings.close_s)
        await self._background.close()
        self._checkpoints.close()
        self._restoring.close()
        for sandbox in self._heart.sandboxes:
            sandbox.close_namespaces()

    # Sandboxes

    async def run_sandbox(self, config: SandboxConfig, handler: str, /) -> SandboxId:
        """RunPodSandbox: see `Sandboxes.run`."""
        self._require_ready()
        return await self._sandboxes.run(config, handler)

    async def stop_sandbox(self, sandbox_id: str, /) -> None:
        """StopPodSandbox: see `Teardown.stop`."""
        self._require_ready()
        await self._teardown.stop(sandbox_id)

    async def remove_sandbox(self, sandbox_id: str, /) -> None:
        """RemovePodSandbox: see `Teardown.remove`."""
        self._require_ready()
        await self._teardown.remove(sandbox_id)

    async def sandbox_status(self, sandbox_id: str, /, *, verbose: bool = False) -> SandboxView:
        """PodSandboxStatus, from the committed record."""
        self._require_ready()
        sandbox = self._heart.sandboxes.require(sandbox_id)
        if sandbox.record.state is SandboxState.CREATING:
            raise NotFound(f"sandbox {sandbox.record.id} is still being created")
        return replace(
            sandbox.view,
            containers=shown_containers(sandbox),
            at_ns=self._heart.feed.stamp(),
            info=_sandbox_info(sandbox, self._pod_stats.sources(sandbox)) if verbose else {},
        )

    async def list_sandboxes(self, filter_: Filter, /) -> Sequence[SandboxView]:
        """ListPodSandbox: newest first, one snapshot."""
        self._require_ready()
        return list_sandboxes(self._heart, filter_)

    async def update_sandbox(
        self, sandbox_id: str, overhead: Resources | None, resources: Resources | None, /
    ) -> None:
        """UpdatePodSandboxResources: see `Updating.sandbox`."""
        self._require_ready()
        await self._updating.sandbox(sandbox_id, overhead, resources)

    def snapshot(self) -> Snapshot:
        """Return all that is listed, for observers: see `polypod.lifecycle.facts`."""
        return snapshot(self._heart)

    def sandbox_facts(self, sandbox_id: SandboxId, /) -> SandboxFacts | None:
        """Return what observers are shown of one sandbox; None for an unknown one."""
        sandbox = self._heart.sandboxes.exact(sandbox_id)
        return None if sandbox is None else sandbox_facts(sandbox)

    def container_facts(self, container_id: ContainerId, /) -> ContainerFacts | None:
        """Return what observers are shown of one container; None for an unknown one."""
        container = self._heart.containers.exact(container_id)
        return None if container is None else container_facts(self._heart, container)

    async def evict(self, sandbox_id: SandboxId, reason: str, /) -> None:
        """Stop a sandbox on an observer's word; the kubelet sees it NOTREADY."""
        self._require_ready()
        self._heart.sandboxes.require(sandbox_id).explain.note(f"evicted: {reason}")
        await self._teardown.stop(sandbox_id)

    # Containers

    async def create_container(
        self, sandbox_id: str, config: ContainerConfig, sandbox_config: SandboxConfig | None, /
    ) -> ContainerId:
        """CreateContainer: see `Creating.create`. The sandbox's own record counts, not the copy sent."""
        self._require_ready()
        del sandbox_config
        return await self._creating.create(sandbox_id, config)

    async def start_container(self, container_id: str, /) -> None:
        """StartContainer: see `Starting.start`."""
        self._require_ready()
        await self._starting.start(container_id)

    async def stop_container(self, container_id: str, timeout_s: float, /) -> None:
        """StopContainer: see `Containers.stop`."""
        self._require_ready()
        await self._containers.stop(container_id, timeout_s)

    async def remove_container(self, container_id: str, /) -> None:
        """RemoveContainer: see `Containers.remove`."""
        self._require_ready()
        await self._containers.remove(container_id)

    async def container_status(
        self, container_id: str, /, *, verbose: bool = False
    ) -> ContainerView:
        """ContainerStatus, from the committed record."""
        container = self._container(container_id)
        return (
            replace(container.view, info=_container_info(container)) if verbose else container.view
        )

    async def list_containers(self, filter_: Filter, /) -> Sequence[ContainerView]:
        """ListContainers: newest first, one snapshot, of listed sandboxes only."""
        self._require_ready()
        return list_containers(self._heart, filter_)

    async def update_container(
        self,
        container_id: str,
        resources: Resources,
        annotations: Mapping[str, str] | None = None,
        /,
    ) -> None:
        """UpdateContainerResources: see `Updating.container`."""
        self._require_ready()
        await self._updating.container(container_id, resources, annotations)

    async def exec_sync(
        self, container_id: str, command: Sequence[str], timeout_s: float, /
    ) -> ExecResult:
        """ExecSync: see `Execs.run`."""
        self._require_ready()
        return await self._execs.run(container_id, command, timeout_s)

    async def exec_url(
        self, container_id: str, command: Sequence[str], choice: StreamChoice, /
    ) -> str:
        """Exec: see `Streams.exec`."""
        self._require_ready()
        return self._streams.exec(container_id, command, choice)

    async def attach_url(self, container_id: str, choice: StreamChoice, /) -> str:
        """Attach: see `Streams.attach`."""
        self._require_ready()
        return self._streams.attach(container_id, choice)

    async def forward_url(self, sandbox_id: str, ports: Sequence[int], /) -> str:
        """PortForward: see `Streams.forward`."""
        self._require_ready()
        return self._streams.forward(sandbox_id, ports)

    # Checkpoints

    async def checkpoint_container(
        self, container_id: str, location: str, timeout_s: float, /
    ) -> None:
        """CheckpointContainer: see `Checkpoints.container`."""
        self._require_ready()
        await self._checkpoints.container(container_id, location, timeout_s)

    async def checkpoint_pod(
        self,
        sandbox_id: str,
        output: str,
        container_ids: Sequence[str],
        options: Mapping[str, str],
        /,
    ) -> None:
        """CheckpointPod: see `Checkpoints.pod`."""
        self._require_ready()
        await self._checkpoints.pod(sandbox_id, output, container_ids, options)

    async def restore_pod(
        self,
        checkpoint: str,
        config: SandboxConfig,
        handler: str,
        containers: Sequence[ContainerConfig],
        options: Mapping[str, str],
        /,
    ) -> tuple[SandboxId, Mapping[str, ContainerId]]:
        """RestorePod: see `Restoring.pod`."""
        self._require_ready()
        return await self._restoring.pod(checkpoint, config, handler, containers, options)

    async def reopen_log(self, container_id: str, /) -> None:
        """ReopenContainerLog: refused, and no file made, where the container does not run."""
        container = self._container(container_id)
        if container.record.state is not ContainerState.RUNNING:
            raise FailedPrecondition(
                f"container {container.record.id} is {container.record.state}, not running: "
                "its log is not written any more"
            )
        await self._heart.parts.logs.reopen(
            container.record.id, container.view.log_path, base=container.log_base
        )

    async def container_stats(self, container_id: str, /) -> StatsView:
        """ContainerStats: NotFound for an unknown one."""
        return await self._stats.of(self._container(container_id))

    async def list_container_stats(self, filter_: Filter, /) -> Sequence[StatsView]:
        """ListContainerStats: running ones alone."""
        self._require_ready()
        running = [
            each
            for each in select_containers(self._heart, filter_)
            if each.record.state is ContainerState.RUNNING
        ]
        return await self._stats.of_all(running)

    async def pod_stats(self, sandbox_id: str, /) -> PodStatsView:
        """PodSandboxStats: NotFound for an unknown one."""
        self._require_ready()
        sandbox = self._heart.sandboxes.require(sandbox_id)
        if sandbox.record.state is SandboxState.CREATING:
            raise NotFound(f"sandbox {sandbox.record.id} is still being created")
        return (await self._pod_stats.of_all([sandbox]))[0]

    async def list_pod_stats(self, filter_: Filter, /) -> Sequence[PodStatsView]:
        """ListPodSandboxStats: READY ones alone."""
        self._require_ready()
        wanted = replace(filter_, state=SandboxState.READY)
        return await self._pod_stats.of_all(select_sandboxes(self._heart, wanted))

    def metric_descriptors(self) -> Sequence[MetricDescriptor]:
        """ListMetricDescriptors: see `Metrics.descriptors`."""
        self._require_ready()
        return self._metrics.descriptors()

    async def list_metrics(self) -> Sequence[PodMetricsView]:
        """ListPodSandboxMetrics: see `Metrics.all`."""
        self._require_ready()
        return await self._metrics.all()

    def open_events(self) -> Reader:
        """GetContainerEvents: everything that happens from now on."""
        self._require_ready()
        return self._heart.feed.open()

    def census(self) -> Census:
        """Return how many sandboxes and containers there are, half-made ones too."""
        heart = self._heart
        return Census(
            Counter(
                (each.record.chosen_handler, str(each.record.state)) for each in heart.sandboxes
            ),
            Counter(
                (each.sandbox.record.chosen_handler, str(each.record.state))
                for each in heart.containers
            ),
            len(heart.feed.readers),
            heart.feed.lost,
        )

    def end_events(self) -> None:
        """End the streams of events: the server is about to leave."""
        self._heart.feed.close()

    # The server

    async def update_runtime_config(self, pod_cidrs: Sequence[str], /) -> None:
        """UpdateRuntimeConfig: the network's affair."""
        self._require_ready()
        await self._heart.parts.network.configure(pod_cidrs)

    async def status(self, /, *, verbose: bool = False) -> StatusView:
        """Status: conditions, handlers, features."""
        self._require_ready()
        view = await server_status(self._heart, verbose=verbose)
        return replace(view, info={**view.info, **self.info}) if verbose else view

    # Images

    async def list_images(self, reference: str, /) -> Sequence[Image]:
        """ListImages; an empty reference means all."""
        self._require_ready()
        return await self._images.list(reference)

    async def image_status(self, reference: str, /) -> Image | None:
        """ImageStatus: None for an absent image, which is no error."""
        self._require_ready()
        return await self._images.find(reference)

    async def pull_image(self, reference: str, auth: Auth | None, /) -> Image:
        """PullImage."""
        self._require_ready()
        return await self._images.pull(reference, auth)

    def pull_progress(self, reference: str, /) -> Sequence[PullProgress]:
        """Return how far a pull that is under way has come; empty if there is none."""
        return self._images.progress(reference)

    async def remove_image(self, reference: str, /) -> None:
        """RemoveImage: all names of the image; unknown ones succeed."""
        self._require_ready()
        await self._images.remove(reference)

    async def image_filesystems(self, /) -> tuple[FilesystemUsage, FilesystemUsage]:
        """ImageFsInfo, of images and of what containers write: works before any image exists."""
        self._require_ready()
        return await self._images.filesystems()

    def _require_ready(self) -> None:
        if not self._ready:
            raise Unavailable("the server is starting or stopping; try again in a moment")

    def _container(self, container_id: str) -> Container:
        self._require_ready()
        container = self._heart.containers.require(container_id)
        if container.record.state is ContainerState.CREATING:
            raise NotFound(f"container {container.record.id} is still being created")
        return container


def _sandbox_info(sandbox: Sandbox, counters: Mapping[str, object]) -> dict[str, object]:
    record = sandbox.record
    return {
        "handler": record.handler,
        "chosenHandler": record.chosen_handler,
        "state": record.state,
        "message": record.message,
        "directory": str(sandbox.directory),
        "cgroup": record.cgroup,
        "namespaces": list(record.namespaces),
        "network": dict(record.attachment.result) if record.attachment else {},
        "containers": list(sandbox.containers),
        "limits": asdict(pod_resources(sandbox)),
        "counters": counters,
        "explain": sandbox.explain.long(),
    }


def _container_info(container: Container) -> dict[str, object]:
    record = container.record
    return {
        "sandboxId": record.sandbox_id,
        "pid": record.pid,
        "state": record.state,
        "directory": str(container.directory),
        "chosenHandler": container.sandbox.record.chosen_handler,
        "streams": {
            "stdin": record.config.stdin,
            "stdinOnce": record.config.stdin_once,
            "tty": record.config.tty,
        },
        "rootfs": repr(container.rootfs) if container.rootfs else "",
        "updateAnnotations": dict(record.update_annotations),
        "explain": container.explain.long(),
    }
