"""RuntimeService: one method per RPC: decode, one call, encode. A test checks that none is missing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from typing_extensions import override

import polypod
from polypod.api import decode, decode_checkpoints, encode, encode_stats
from polypod.api.streams import pieces
from polypod.api.v1 import api_pb2 as pb
from polypod.api.v1 import api_pb2_grpc as rpc
from polypod.api.wire_lists import WireList

if TYPE_CHECKING:
    from polypod.lifecycle.views import Lifecycle

Context = Any
"""``grpc.aio.ServicerContext``; no method needs it, the interceptor does all that it is for."""


class RuntimeService(rpc.RuntimeServiceServicer):
    """Pods and containers over the wire."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._heart = lifecycle
        self._sandboxes = WireList(encode.sandbox)
        self._containers = WireList(encode.container)

    @override
    async def Version(self, request: pb.VersionRequest, context: Context) -> pb.VersionResponse:
        return pb.VersionResponse(
            version="0.1.0",
            runtime_name="polypod",
            runtime_version=polypod.__version__,
            runtime_api_version="v1",
        )

    @override
    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusResponse:
        view = await self._heart.status(verbose=request.verbose)
        return encode.status(view, verbose=request.verbose)

    @override
    async def RuntimeConfig(
        self,
        request: pb.RuntimeConfigRequest,
        context: Context,
    ) -> pb.RuntimeConfigResponse:
        driver = pb.LinuxRuntimeConfiguration(cgroup_driver=pb.CGROUPFS)
        return pb.RuntimeConfigResponse(linux=driver)

    @override
    async def UpdateRuntimeConfig(
        self,
        request: pb.UpdateRuntimeConfigRequest,
        context: Context,
    ) -> pb.UpdateRuntimeConfigResponse:
        await self._heart.update_runtime_config(decode.pod_cidrs(request))
        return pb.UpdateRuntimeConfigResponse()

    @override
    async def RunPodSandbox(
        self,
        request: pb.RunPodSandboxRequest,
        context: Context,
    ) -> pb.RunPodSandboxResponse:
        config, handler = decode.run_sandbox(request)
        sandbox_id = await self._heart.run_sandbox(config, handler)
        return pb.RunPodSandboxResponse(pod_sandbox_id=sandbox_id)

    @override
    async def StopPodSandbox(
        self,
        request: pb.StopPodSandboxRequest,
        context: Context,
    ) -> pb.StopPodSandboxResponse:
        await self._heart.stop_sandbox(decode.object_id(request.pod_sandbox_id, "pod_sandbox_id"))
        return pb.StopPodSandboxResponse()

    @override
    async def RemovePodSandbox(
        self,
        request: pb.RemovePodSandboxRequest,
        context: Context,
    ) -> pb.RemovePodSandboxResponse:
        await self._heart.remove_sandbox(decode.object_id(request.pod_sandbox_id, "pod_sandbox_id"))
        return pb.RemovePodSandboxResponse()

    @override
    async def PodSandboxStatus(
        self,
        request: pb.PodSandboxStatusRequest,
        context: Context,
    ) -> pb.PodSandboxStatusResponse:
        wanted = decode.object_id(request.pod_sandbox_id, "pod_sandbox_id")
        view = await self._heart.sandbox_status(wanted, verbose=request.verbose)
        return pb.PodSandboxStatusResponse(
            status=encode.sandbox_status(view),
            info=encode.info(view.info) if request.verbose else {},
            containers_statuses=[encode.container_status(each) for each in view.containers],
            timestamp=view.at_ns,
        )

    @override
    async def StreamPodSandboxes(
        self,
        request: pb.StreamPodSandboxesRequest,
        context: Context,
    ) -> AsyncIterator[pb.StreamPodSandboxesResponse]:
        views = await self._heart.list_sandboxes(decode.sandbox_filter(request.filter))
        async for piece in pieces(
            views,
            encode.sandbox,
            lambda items: pb.StreamPodSandboxesResponse(pod_sandboxes=items),
        ):
            yield piece

    @override
    async def ListPodSandbox(
        self,
        request: pb.ListPodSandboxRequest,
        context: Context,
    ) -> bytes:
        views = await self._heart.list_sandboxes(decode.sandbox_filter(request.filter))
        return self._sandboxes.answer(views)

    @override
    async def CreateContainer(
        self,
        request: pb.CreateContainerRequest,
        context: Context,
    ) -> pb.CreateContainerResponse:
        container_id = await self._heart.create_container(*decode.create_container(request))
        return pb.CreateContainerResponse(container_id=container_id)

    @override
    async def StartContainer(
        self,
        request: pb.StartContainerRequest,
        context: Context,
    ) -> pb.StartContainerResponse:
        await self._heart.start_container(decode.object_id(request.container_id, "container_id"))
        return pb.StartContainerResponse()

    @override
    async def StopContainer(
        self,
        request: pb.StopContainerRequest,
        context: Context,
    ) -> pb.StopContainerResponse:
        # A stop is never refused for its patience: a negative one means "now".
        patience_s = float(max(request.timeout, 0))
        await self._heart.stop_container(
            decode.object_id(request.container_id, "container_id"), patience_s
        )
        return pb.StopContainerResponse()

    @override
    async def RemoveContainer(
        self,
        request: pb.RemoveContainerRequest,
        context: Context,
    ) -> pb.RemoveContainerResponse:
        await self._heart.remove_container(decode.object_id(request.container_id, "container_id"))
        return pb.RemoveContainerResponse()

    @override
    async def ListContainers(
        self,
        request: pb.ListContainersRequest,
        context: Context,
    ) -> bytes:
        views = await self._heart.list_containers(decode.container_filter(request.filter))
        return self._containers.answer(views)

    @override
    async def StreamContainers(
        self,
        request: pb.StreamContainersRequest,
        context: Context,
    ) -> AsyncIterator[pb.StreamContainersResponse]:
        views = await self._heart.list_containers(decode.container_filter(request.filter))
        async for piece in pieces(
            views, encode.container, lambda items: pb.StreamContainersResponse(containers=items)
        ):
            yield piece

    @override
    async def GetContainerEvents(
        self,
        request: pb.GetEventsRequest,
        context: Context,
    ) -> AsyncIterator[pb.ContainerEventResponse]:
        reader = self._heart.open_events()
        try:
            # Tells the client that from here on it misses nothing.
            await context.send_initial_metadata(())
            async for event in reader.events():
                yield encode.event(event)
        finally:
            reader.close()

    @override
    async def ContainerStatus(
        self,
        request: pb.ContainerStatusRequest,
        context: Context,
    ) -> pb.ContainerStatusResponse:
        wanted = decode.object_id(request.container_id, "container_id")
        view = await self._heart.container_status(wanted, verbose=request.verbose)
        return pb.ContainerStatusResponse(
            status=encode.container_status(view),
            info=encode.info(view.info) if request.verbose else {},
        )

    @override
    async def UpdateContainerResources(
        self,
        request: pb.UpdateContainerResourcesRequest,
        context: Context,
    ) -> pb.UpdateContainerResourcesResponse:
        await self._heart.update_container(*decode.update_container(request))
        return pb.UpdateContainerResourcesResponse()

    @override
    async def UpdatePodSandboxResources(
        self,
        request: pb.UpdatePodSandboxResourcesRequest,
        context: Context,
    ) -> pb.UpdatePodSandboxResourcesResponse:
        await self._heart.update_sandbox(*decode.update_sandbox(request))
        return pb.UpdatePodSandboxResourcesResponse()

    @override
    async def CheckpointContainer(
        self,
        request: pb.CheckpointContainerRequest,
        context: Context,
    ) -> pb.CheckpointContainerResponse:
        await self._heart.checkpoint_container(*decode_checkpoints.checkpoint_container(request))
        return pb.CheckpointContainerResponse()

    @override
    async def CheckpointPod(
        self,
        request: pb.CheckpointPodRequest,
        context: Context,
    ) -> pb.CheckpointPodResponse:
        await self._heart.checkpoint_pod(*decode_checkpoints.checkpoint_pod(request))
        return pb.CheckpointPodResponse()

    @override
    async def RestorePod(
        self,
        request: pb.RestorePodRequest,
        context: Context,
    ) -> pb.RestorePodResponse:
        sandbox_id, made = await self._heart.restore_pod(*decode_checkpoints.restore_pod(request))
        restored = [pb.RestoredContainer(name=name, container_id=id_) for name, id_ in made.items()]
        return pb.RestorePodResponse(pod_sandbox_id=sandbox_id, restored_containers=restored)

    @override
    async def ReopenContainerLog(
        self,
        request: pb.ReopenContainerLogRequest,
        context: Context,
    ) -> pb.ReopenContainerLogResponse:
        await self._heart.reopen_log(decode.object_id(request.container_id, "container_id"))
        return pb.ReopenContainerLogResponse()

    @override
    async def ExecSync(self, request: pb.ExecSyncRequest, context: Context) -> pb.ExecSyncResponse:
        result = await self._heart.exec_sync(
            decode.object_id(request.container_id, "container_id"),
            decode.command(request.cmd, "cmd"),
            decode.seconds(request.timeout, "timeout"),
        )
        return pb.ExecSyncResponse(
            stdout=result.stdout, stderr=result.stderr, exit_code=result.exit_code
        )

    @override
    async def Exec(self, request: pb.ExecRequest, context: Context) -> pb.ExecResponse:
        url = await self._heart.exec_url(
            decode.object_id(request.container_id, "container_id"),
            decode.command(request.cmd, "cmd"),
            decode.stream_choice(request),
        )
        return pb.ExecResponse(url=url)

    @override
    async def Attach(self, request: pb.AttachRequest, context: Context) -> pb.AttachResponse:
        container_id = decode.object_id(request.container_id, "container_id")
        url = await self._heart.attach_url(container_id, decode.stream_choice(request))
        return pb.AttachResponse(url=url)

    @override
    async def PortForward(
        self,
        request: pb.PortForwardRequest,
        context: Context,
    ) -> pb.PortForwardResponse:
        sandbox_id = decode.object_id(request.pod_sandbox_id, "pod_sandbox_id")
        url = await self._heart.forward_url(sandbox_id, decode.ports(request.port, "port"))
        return pb.PortForwardResponse(url=url)

    @override
    async def ContainerStats(
        self,
        request: pb.ContainerStatsRequest,
        context: Context,
    ) -> pb.ContainerStatsResponse:
        wanted = decode.object_id(request.container_id, "container_id")
        view = await self._heart.container_stats(wanted)
        return pb.ContainerStatsResponse(stats=encode_stats.container(view))

    @override
    async def ListContainerStats(
        self,
        request: pb.ListContainerStatsRequest,
        context: Context,
    ) -> pb.ListContainerStatsResponse:
        views = await self._heart.list_container_stats(decode.stats_filter(request.filter))
        return pb.ListContainerStatsResponse(stats=[encode_stats.container(v) for v in views])

    @override
    async def PodSandboxStats(
        self,
        request: pb.PodSandboxStatsRequest,
        context: Context,
    ) -> pb.PodSandboxStatsResponse:
        wanted = decode.object_id(request.pod_sandbox_id, "pod_sandbox_id")
        view = await self._heart.pod_stats(wanted)
        return pb.PodSandboxStatsResponse(stats=encode_stats.pod(view))

    @override
    async def ListPodSandboxStats(
        self,
        request: pb.ListPodSandboxStatsRequest,
        context: Context,
    ) -> pb.ListPodSandboxStatsResponse:
        views = await self._heart.list_pod_stats(decode.pod_stats_filter(request.filter))
        return pb.ListPodSandboxStatsResponse(stats=[encode_stats.pod(view) for view in views])

    @override
    async def StreamPodSandboxStats(
        self,
        request: pb.StreamPodSandboxStatsRequest,
        context: Context,
    ) -> AsyncIterator[pb.StreamPodSandboxStatsResponse]:
        views = await self._heart.list_pod_stats(decode.pod_stats_filter(request.filter))
        async for piece in pieces(
            views,
            encode_stats.pod,
            lambda items: pb.StreamPodSandboxStatsResponse(pod_sandbox_stats=items),
        ):
            yield piece

    @override
    async def ListMetricDescriptors(
        self,
        request: pb.ListMetricDescriptorsRequest,
        context: Context,
    ) -> pb.ListMetricDescriptorsResponse:
        views = self._heart.metric_descriptors()
        return pb.ListMetricDescriptorsResponse(
            descriptors=[encode_stats.descriptor(view) for view in views]
        )

    @override
    async def ListPodSandboxMetrics(
        self,
        request: pb.ListPodSandboxMetricsRequest,
        context: Context,
    ) -> pb.ListPodSandboxMetricsResponse:
        views = await self._heart.list_metrics()
        return pb.ListPodSandboxMetricsResponse(
            pod_metrics=[encode_stats.pod_metrics(view) for view in views]
        )

    @override
    async def StreamPodSandboxMetrics(
        self,
        request: pb.StreamPodSandboxMetricsRequest,
        context: Context,
    ) -> AsyncIterator[pb.StreamPodSandboxMetricsResponse]:
        views = await self._heart.list_metrics()
        async for piece in pieces(
            views,
            encode_stats.pod_metrics,
            lambda items: pb.StreamPodSandboxMetricsResponse(pod_sandbox_metrics=items),
        ):
            yield piece

    @override
    async def StreamContainerStats(
        self,
        request: pb.StreamContainerStatsRequest,
        context: Context,
    ) -> AsyncIterator[pb.StreamContainerStatsResponse]:
        views = await self._heart.list_container_stats(decode.stats_filter(request.filter))
        async for piece in pieces(
            views,
            encode_stats.container,
            lambda items: pb.StreamContainerStatsResponse(container_stats=items),
        ):
            yield piece
