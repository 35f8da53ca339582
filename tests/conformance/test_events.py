"""GetContainerEvents: what happens is told once, in order, with the pod's status; nobody waits for a reader."""

from __future__ import annotations

import asyncio
import contextlib
import signal

import grpc
import pytest
from conformance.pods import LIMIT_S, Pods, refused
from conformance.subjects import ONCE

from polypod.client import CriClient, CriError, pb

CREATED, STARTED, STOPPED, DELETED = (
    pb.CONTAINER_CREATED_EVENT,
    pb.CONTAINER_STARTED_EVENT,
    pb.CONTAINER_STOPPED_EVENT,
    pb.CONTAINER_DELETED_EVENT,
)


class Listener:
    """A reader of events, open before anything that the test does."""

    def __init__(self, cri: CriClient) -> None:
        self.events: list[pb.ContainerEventResponse] = []
        self.error: CriError | None = None
        self._opened = asyncio.Event()
        self._came = asyncio.Condition()
        self._task = asyncio.create_task(self._read(cri))

    async def _read(self, cri: CriClient) -> None:
        stream = cri.stream(
            cri.runtime, "GetContainerEvents", pb.GetEventsRequest(), opened=self._opened.set
        )
        try:
            async for event in stream:
                async with self._came:
                    self.events.append(event)
                    self._came.notify_all()
        except CriError as error:
            self.error = error
        finally:
            self._opened.set()

    async def opened(self) -> None:
        await asyncio.wait_for(self._opened.wait(), LIMIT_S)

    async def until(self, object_id: str, kind: int) -> pb.ContainerEventResponse:
        """Return the first event of a kind about an object, when it has come."""

        def found() -> pb.ContainerEventResponse | None:
            return next(
                (
                    each
                    for each in self.events
                    if (each.container_id, each.container_event_type) == (object_id, kind)
                ),
                None,
            )

        async with asyncio.timeout(LIMIT_S), self._came:
            await self._came.wait_for(lambda: found() is not None)
        event = found()
        assert event is not None
        return event

    def of(self, object_id: str) -> list[int]:
        """Return what was told of an object, in order."""
        return [each.container_event_type for each in self.events if each.container_id == object_id]

    async def ended(self) -> CriError | None:
        """Return the error with which the server ended the stream."""
        await asyncio.wait_for(asyncio.shield(self._task), LIMIT_S)
        return self.error

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@contextlib.asynccontextmanager
async def listening(cri: CriClient):
    listener = Listener(cri)
    try:
        await listener.opened()
        yield listener
    finally:
        await listener.close()


async def drain(stalled) -> grpc.aio.AioRpcError:
    """Read a stream to its end, which must be an error, and return that."""
    try:
        while await asyncio.wait_for(stalled.read(), LIMIT_S) is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return error
    pytest.fail("the stream of a reader that lost events ended well")


async def test_a14_a_life_is_told_once_and_in_order(pods: Pods, cri: CriClient):
    async with listening(cri) as told:
        pod = await pods.run()
        box = (await pod.run("exit 3")).status.id
        await cri.remove_container(box)
        await cri.stop_sandbox(pod.id)
        await cri.remove_sandbox(pod.id)
        await told.until(pod.id, DELETED)
        assert told.of(box) == [CREATED, STARTED, STOPPED, DELETED]
        assert told.of(pod.id) == [CREATED, STARTED, STOPPED, DELETED]
        times = [each.created_at for each in told.events]
        assert times == sorted(set(times)), "times that are equal or go back"


async def test_events_bring_the_status_that_a_kubelet_would_ask_for(pods: Pods, cri: CriClient):
    async with listening(cri) as told:
        pod = await pods.run(labels={"a": "b"}, annotations={"c": "d"})
        box = await pod.start("sleep 1000")
        started = await told.until(box, STARTED)
        status = await cri.sandbox_status(pod.id)
        assert started.pod_sandbox_status == status.status
        assert list(started.containers_statuses) == list(status.containers_statuses)
        assert started.containers_statuses[0].state == pb.CONTAINER_RUNNING
        assert started.containers_statuses[0].id == box
        assert 0 < started.created_at < status.timestamp
        await cri.stop_container(box, 0)
        stopped = await told.until(box, STOPPED)
        [dead] = stopped.containers_statuses
        assert (dead.state, dead.exit_code) == (pb.CONTAINER_EXITED, 128 + signal.SIGKILL)
        assert stopped.created_at > status.timestamp


async def test_a_deleted_pod_is_told_with_its_uid(pods: Pods, cri: CriClient):
    # A kubelet ignores events without a sandbox status, and forgets the pod by the uid in this one.
    async with listening(cri) as told:
        pod = await pods.run()
        await pods.remove_all()
        deleted = await told.until(pod.id, DELETED)
        assert deleted.pod_sandbox_status.metadata == pod.config.metadata
        assert deleted.pod_sandbox_status.state == pb.SANDBOX_NOTREADY
        assert not deleted.containers_statuses


async def test_a_program_that_is_not_there_is_told_as_ended(pods: Pods, cri: CriClient):
    async with listening(cri) as told:
        pod = await pods.run()
        box = await pod.create(["/no/such/program"])
        with refused("UNKNOWN", "/no/such/program"):
            await cri.start_container(box)
        ended = await told.until(box, STOPPED)
        assert told.of(box) == [CREATED, STOPPED]
        assert ended.containers_statuses[0].reason == "StartError"


async def test_what_was_before_the_call_is_not_told(pods: Pods, cri: CriClient):
    pod = await pods.run()
    box = await pod.start("sleep 1000")
    async with listening(cri) as told:
        await cri.stop_container(box, 0)
        await told.until(box, STOPPED)
        assert [(each.container_id, each.container_event_type) for each in told.events] == [
            (box, STOPPED)
        ]


async def test_repeated_calls_tell_nothing_twice(pods: Pods, cri: CriClient):
    async with listening(cri) as told:
        pod = await pods.run()
        box = await pod.start("sleep 1000")
        for _ in range(3):
            await cri.stop_container(box, 0)
            await cri.stop_sandbox(pod.id)
        for _ in range(3):
            await cri.remove_container(box)
            await cri.remove_sandbox(pod.id)
        await told.until(pod.id, DELETED)
        assert told.of(box) == [CREATED, STARTED, STOPPED, DELETED]
        assert told.of(pod.id) == [CREATED, STARTED, STOPPED, DELETED]


async def test_every_reader_is_told_everything(pods: Pods, cri: CriClient, server):
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(CriClient(server.endpoint)) for _ in range(4)]
        readers = [await stack.enter_async_context(listening(each)) for each in clients]
        pod = await pods.run()
        boxes = [(await pod.run("exit 0", attempt=n)).status.id for n in range(3)]
        await pods.remove_all()
        for reader in readers:
            await reader.until(pod.id, DELETED)
            for box in boxes:
                assert reader.of(box) == [CREATED, STARTED, STOPPED, DELETED]
        assert len({tuple(e.created_at for e in reader.events) for reader in readers}) == 1


async def test_a14_a_reader_that_does_not_read_loses_its_stream_and_holds_nobody_back(
    pods: Pods, cri: CriClient, handler, server
):
    if not handler.simulated:
        pytest.skip(
            f"{ONCE}the buffers are the server's own: one handler is enough for a thousand churns"
        )
    async with CriClient(server.endpoint) as lazy, listening(cri) as reader:
        stalled = lazy.runtime.GetContainerEvents(pb.GetEventsRequest())
        await stalled.initial_metadata()
        # What is on the way is the transport's; what the server keeps is bounded by number.
        pod = await pods.run(annotations={"note": "x" * (16 << 10)})
        for attempt in range(700):
            box = await pod.create(attempt=attempt)
            await cri.remove_container(box)
        await reader.until(box, DELETED)
        assert reader.error is None, "the reader that reads was cut off with the one that does not"
        error = await drain(stalled)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "read too slowly" in error.details()
        # What the kubelet does then: it lists, and opens another stream.
        async with listening(lazy) as again:
            box = await pod.create(attempt=1000)
            await again.until(box, CREATED)


async def test_readers_that_leave_are_forgotten(pods: Pods, cri: CriClient):
    for _ in range(20):
        async with listening(cri):
            pass
    async with listening(cri) as told:
        pod = await pods.run()
        await told.until(pod.id, STARTED)
