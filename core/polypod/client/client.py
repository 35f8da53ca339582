"""The client: one method for each call that polypod implements; the raw stubs for the rest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import grpc

from polypod.api.v1 import api_pb2 as pb
from polypod.api.v1 import api_pb2_grpc as rpc
from polypod.client.errors import CriError

MAX_MESSAGE_BYTES = 16 << 20
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Without this the socket's path is sent as :authority, which servers written in Go refuse.
    ("grpc.default_authority", "localhost"),
    ("grpc.enable_http_proxy", 0),
    # The other end is on this host: a server that starts is found at once, not after seconds.
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class CriClient:
    """A connection to a CRI endpoint. Every method raises `CriError`.

    Args:
        endpoint: ``unix:///path``, or a bare absolute path.
        timeout_s: for each call; PullImage, StopContainer and ExecSync get more as they need.
    """

    def __init__(self, endpoint: str, *, timeout_s: float = 120.0) -> None:
        self.endpoint = endpoint if "://" in endpoint else f"unix://{endpoint}"
        self._timeout_s = timeout_s
        self._channel = grpc.aio.insecure_channel(self.endpoint, options=_OPTIONS)
        self.runtime = rpc.RuntimeServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self.images = rpc.ImageServiceStub(self._channel)  # type: ignore[no-untyped-call]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait until the server answers and has recovered (ListPodSandbox works).

        Raises:
            CriError: it did not in that time; the last refusal.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            try:
                await self.list_sandboxes()
            except CriError as error:
                late = loop.time() >= deadline
                if late or error.code is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.02)
            else:
                return

    async def call(
        self,
        service: Any,  # noqa: ANN401 - one of the two generated stubs
        name: str,
        request: Any,  # noqa: ANN401 - the RPC's request message
        *,
        timeout_s: float | None = -1,
    ) -> Any:  # noqa: ANN401 - the RPC's response message
        """Make any unary call.

        Args:
            service: `runtime` or `images`.
            name: of the RPC.
            request: its message.
            timeout_s: None = no deadline; negative = the client's own.
        """
        limit = self._timeout_s if timeout_s is not None and timeout_s < 0 else timeout_s
        try:
            return await getattr(service, name)(request, timeout=limit)
        except grpc.aio.AioRpcError as error:
            raise CriError(name, error.code(), error.details() or "no details") from None

    async def stream(
        self,
        service: Any,  # noqa: ANN401 - one of the two generated stubs
        name: str,
        request: Any,  # noqa: ANN401 - the RPC's request message
        *,
        timeout_s: float | None = None,
        opened: Callable[[], None] | None = None,
    ) -> AsyncIterator[Any]:
        """Make any call whose answer is a stream, and yield its messages.

        Args:
            service: `runtime` or `images`.
            name: of the RPC.
            request: its message.
            timeout_s: for all of it; None = as long as it lasts.
            opened: called when the server has taken the call: GetContainerEvents misses nothing then.
        """
        call = getattr(service, name)(request, timeout=timeout_s)
        try:
            if opened is not None:
                await call.initial_metadata()
                opened()
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise CriError(name, error.code(), error.details() or "no details") from None
        finally:
            call.cancel()

    async def version(self) -> pb.VersionResponse:
        """Version."""
        answer: pb.VersionResponse = await self.call(self.runtime, "Version", pb.VersionRequest())
        return answer

    async def status(self, *, verbose: bool = False) -> pb.StatusResponse:
        """Status."""
        request = pb.StatusRequest(verbose=verbose)
        answer: pb.StatusResponse = await self.call(self.runtime, "Status", request)
        return answer

    async def run_sandbox(self, config: pb.PodSandboxConfig, handler: str = "") -> str:
        """RunPodSandbox; returns the sandbox id."""
        request = pb.RunPodSandboxRequest(config=config, runtime_handler=handler)
        answer = await self.call(self.runtime, "RunPodSandbox", request, timeout_s=240)
        return str(answer.pod_sandbox_id)

    async def stop_sandbox(self, sandbox_id: str) -> None:
        """StopPodSandbox."""
        request = pb.StopPodSandboxRequest(pod_sandbox_id=sandbox_id)
        await self.call(self.runtime, "StopPodSandbox", request)

    async def remove_sandbox(self, sandbox_id: str) -> None:
        """RemovePodSandbox."""
        request = pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox_id)
        await self.call(self.runtime, "RemovePodSandbox", request)

    async def sandbox_status(
        self, sandbox_id: str, *, verbose: bool = False
    ) -> pb.PodSandboxStatusResponse:
        """PodSandboxStatus."""
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox_id, verbose=verbose)
        answer: pb.PodSandboxStatusResponse = await self.call(
            self.runtime, "PodSandboxStatus", request
        )
        return answer

    async def list_sandboxes(
        self, *, labels: Mapping[str, str] | None = None
    ) -> Sequence[pb.PodSandbox]:
        """ListPodSandbox."""
        request = pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(label_selector=labels or {}))
        answer = await self.call(self.runtime, "ListPodSandbox", request)
        return list(answer.items)

    async def create_container(
        self,
        sandbox_id: str,
        config: pb.ContainerConfig,
        sandbox_config: pb.PodSandboxConfig | None = None,
    ) -> str:
        """CreateContainer; returns the container id."""
        request = pb.CreateContainerRequest(
            pod_sandbox_id=sandbox_id, config=config, sandbox_config=sandbox_config
        )
        answer = await self.call(self.runtime, "CreateContainer", request)
        return str(answer.container_id)

    async def start_container(self, container_id: str) -> None:
        """StartContainer."""
        request = pb.StartContainerRequest(container_id=container_id)
        await self.call(self.runtime, "StartContainer", request)

    async def stop_container(self, container_id: str, grace_s: int = 10) -> None:
        """StopContainer; waits for the process to end."""
        request = pb.StopContainerRequest(container_id=container_id, timeout=grace_s)
        limit = self._timeout_s + grace_s
        await self.call(self.runtime, "StopContainer", request, timeout_s=limit)

    async def remove_container(self, container_id: str) -> None:
        """RemoveContainer."""
        request = pb.RemoveContainerRequest(container_id=container_id)
        await self.call(self.runtime, "RemoveContainer", request)

    async def container_status(
        self, container_id: str, *, verbose: bool = False
    ) -> pb.ContainerStatusResponse:
        """ContainerStatus."""
        request = pb.ContainerStatusRequest(container_id=container_id, verbose=verbose)
        answer: pb.ContainerStatusResponse = await self.call(
            self.runtime, "ContainerStatus", request
        )
        return answer

    async def list_containers(self, *, sandbox_id: str = "") -> Sequence[pb.Container]:
        """ListContainers."""
        chosen = pb.ContainerFilter(pod_sandbox_id=sandbox_id)
        answer = await self.call(
            self.runtime, "ListContainers", pb.ListContainersRequest(filter=chosen)
        )
        return list(answer.containers)

    async def exec_sync(
        self, container_id: str, command: Sequence[str], timeout_s: int = 0
    ) -> pb.ExecSyncResponse:
        """ExecSync; 0 seconds = no limit."""
        request = pb.ExecSyncRequest(container_id=container_id, cmd=command, timeout=timeout_s)
        limit = timeout_s + self._timeout_s if timeout_s else None
        answer: pb.ExecSyncResponse = await self.call(
            self.runtime, "ExecSync", request, timeout_s=limit
        )
        return answer

    async def exec_url(
        self,
        container_id: str,
        command: Sequence[str],
        *,
        stdin: bool = False,
        stdout: bool = False,
        stderr: bool = False,
        tty: bool = False,
    ) -> str:
        """Exec; returns the URL that leads to its streams, once and not for long."""
        request = pb.ExecRequest(
            container_id=container_id,
            cmd=command,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            tty=tty,
        )
        return str((await self.call(self.runtime, "Exec", request)).url)

    async def attach_url(
        self,
        container_id: str,
        *,
        stdin: bool = False,
        stdout: bool = False,
        stderr: bool = False,
        tty: bool = False,
    ) -> str:
        """Attach; as `exec_url`."""
        request = pb.AttachRequest(
            container_id=container_id, stdin=stdin, stdout=stdout, stderr=stderr, tty=tty
        )
        return str((await self.call(self.runtime, "Attach", request)).url)

    async def forward_url(self, sandbox_id: str, ports: Sequence[int] = ()) -> str:
        """PortForward; as `exec_url`. Without ports any may be connected to."""
        request = pb.PortForwardRequest(pod_sandbox_id=sandbox_id, port=ports)
        return str((await self.call(self.runtime, "PortForward", request)).url)

    async def checkpoint_container(
        self, container_id: str, location: str, timeout_s: int = 0
    ) -> None:
        """CheckpointContainer: write an archive at a path of the server's host; 0 = two minutes."""
        request = pb.CheckpointContainerRequest(
            container_id=container_id, location=location, timeout=timeout_s
        )
        await self.call(
            self.runtime, "CheckpointContainer", request, timeout_s=timeout_s + self._timeout_s
        )

    async def checkpoint_pod(
        self,
        sandbox_id: str,
        output_path: str,
        container_ids: Sequence[str] = (),
        options: Mapping[str, str] | None = None,
    ) -> None:
        """CheckpointPod: fill an empty directory of the server's host."""
        request = pb.CheckpointPodRequest(
            pod_sandbox_id=sandbox_id,
            output_path=output_path,
            container_ids=container_ids,
            options=options or {},
        )
        await self.call(self.runtime, "CheckpointPod", request)

    async def restore_pod(
        self,
        checkpoint_path: str,
        config: pb.PodSandboxConfig,
        containers: Sequence[pb.ContainerConfig],
        handler: str = "",
        options: Mapping[str, str] | None = None,
    ) -> pb.RestorePodResponse:
        """RestorePod; its containers are created, StartContainer lets each go on."""
        request = pb.RestorePodRequest(
            checkpoint_path=checkpoint_path,
            config=config,
            container_configs=containers,
            runtime_handler=handler,
            options=options or {},
        )
        answer: pb.RestorePodResponse = await self.call(self.runtime, "RestorePod", request)
        return answer

    async def reopen_log(self, container_id: str) -> None:
        """ReopenContainerLog."""
        request = pb.ReopenContainerLogRequest(container_id=container_id)
        await self.call(self.runtime, "ReopenContainerLog", request)

    async def container_stats(self, container_id: str) -> pb.ContainerStats:
        """ContainerStats."""
        request = pb.ContainerStatsRequest(container_id=container_id)
        answer = await self.call(self.runtime, "ContainerStats", request)
        stats: pb.ContainerStats = answer.stats
        return stats

    async def list_container_stats(self) -> Sequence[pb.ContainerStats]:
        """ListContainerStats."""
        request = pb.ListContainerStatsRequest()
        answer = await self.call(self.runtime, "ListContainerStats", request)
        return list(answer.stats)

    async def list_images(self, reference: str = "") -> Sequence[pb.Image]:
        """ListImages."""
        chosen = pb.ImageFilter(image=pb.ImageSpec(image=reference)) if reference else None
        answer = await self.call(self.images, "ListImages", pb.ListImagesRequest(filter=chosen))
        return list(answer.images)

    async def image_status(
        self, reference: str, *, verbose: bool = False
    ) -> pb.ImageStatusResponse:
        """ImageStatus; ``image`` is unset if there is none."""
        request = pb.ImageStatusRequest(image=pb.ImageSpec(image=reference), verbose=verbose)
        answer: pb.ImageStatusResponse = await self.call(self.images, "ImageStatus", request)
        return answer

    async def pull_image(self, reference: str, auth: pb.AuthConfig | None = None) -> str:
        """PullImage, without a deadline as the kubelet does it; returns the image id."""
        request = pb.PullImageRequest(image=pb.ImageSpec(image=reference), auth=auth)
        answer = await self.call(self.images, "PullImage", request, timeout_s=None)
        return str(answer.image_ref)

    async def remove_image(self, reference: str) -> None:
        """RemoveImage."""
        request = pb.RemoveImageRequest(image=pb.ImageSpec(image=reference))
        await self.call(self.images, "RemoveImage", request)

    async def image_filesystem(self) -> pb.ImageFsInfoResponse:
        """ImageFsInfo."""
        answer: pb.ImageFsInfoResponse = await self.call(
            self.images, "ImageFsInfo", pb.ImageFsInfoRequest()
        )
        return answer
