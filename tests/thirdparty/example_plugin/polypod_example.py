"""A backend of one page: a container is a plain process of the host, run by polypod's supervisor.

It isolates nothing; it shows what an author has to write. Everything that must survive a restart of the
daemon is with the supervisor (processes and their labels) or a file below ``context.state``.
"""

from __future__ import annotations

import signal as signals
from collections.abc import AsyncIterator, Sequence

from polypod.plan.operations import (
    ChangeDirectory,
    Execute,
    Operation,
    Plan,
    StartSession,
    UseStdio,
)
from polypod.plugin import (
    AlreadyExists,
    BackendEvent,
    BackendState,
    BackendStatus,
    ContainerExited,
    ContainerId,
    ContainerSpec,
    FailedPrecondition,
    Hooks,
    Inventory,
    LiveProcess,
    NotFound,
    ProcessId,
    Resources,
    RootfsForm,
    RuntimeBackend,
    RuntimeContext,
    RuntimeType,
    SandboxId,
    SandboxSpec,
    Unsupported,
    hookimpl,
    override,
)

LABEL = "polypod-example/sandbox"


class ExampleBackend:
    """Implements `polypod.plugin.RuntimeBackend`; mypy checks that where `open_` returns it."""

    def __init__(self, context: RuntimeContext) -> None:
        self._supervisor = context.supervisor
        self._sandboxes = context.state / "sandboxes"
        self._started = context.state / "started"
        for directory in (self._sandboxes, self._started):
            directory.mkdir(exist_ok=True)

    async def create_sandbox(self, spec: SandboxSpec, /) -> None:
        (self._sandboxes / spec.id).touch()

    async def stop_sandbox(self, sandbox_id: SandboxId, /) -> None:
        for process in await self._processes():
            if process.labels[LABEL] == sandbox_id and process.exit is None:
                await self.kill(ContainerId(process.process_id), signals.SIGKILL, whole=True)
                await self._supervisor.wait(process.process_id)

    async def remove_sandbox(self, sandbox_id: SandboxId, /) -> None:
        await self.stop_sandbox(sandbox_id)
        for process in await self._processes():
            if process.labels[LABEL] == sandbox_id:
                await self.delete(ContainerId(process.process_id))
        (self._sandboxes / sandbox_id).unlink(missing_ok=True)

    async def create(self, spec: ContainerSpec, /) -> None:
        if not (self._sandboxes / spec.sandbox.id).exists():
            raise FailedPrecondition(f"container {spec.id}: sandbox {spec.sandbox.id} is unknown")
        if await self._process(spec.id) is not None:
            raise AlreadyExists(f"container {spec.id} exists already")
        stdio, process = spec.stdio, spec.config.process
        fds = [fd for fd in (stdio.stdin, stdio.stdout, stdio.stderr) if fd is not None]

        def source(fd: int | None) -> str:
            return "" if fd is None else f"fd:{fds.index(fd)}"

        operations: list[Operation] = [
            StartSession(),
            UseStdio(
                stdin=source(stdio.stdin),
                stdout=source(stdio.stdout),
                stderr=source(stdio.stderr),
                uid=-1,
            ),
            ChangeDirectory(path=process.cwd),
            Execute(args=list(process.args), env=list(process.env), search=True),
        ]
        await self._supervisor.launch(
            ProcessId(spec.id),
            Plan(0, operations),
            fds=fds,
            labels={LABEL: spec.sandbox.id},
            hold=True,
        )

    async def start(self, container_id: ContainerId, /) -> BackendStatus:
        (self._started / container_id).touch()
        await self._supervisor.release(ProcessId(container_id))
        return await self.status(container_id)

    async def kill(self, container_id: ContainerId, signal: int, /, *, whole: bool = False) -> None:
        del whole  # a process without a cgroup: there is no whole
        process = await self._process(container_id)
        if process is not None and process.exit is None:
            await self._supervisor.kill(process.process_id, signal)

    async def delete(self, container_id: ContainerId, /) -> None:
        process = await self._process(container_id)
        if process is not None:
            await self.kill(container_id, signals.SIGKILL)
            await self._supervisor.wait(process.process_id)
            await self._supervisor.forget(process.process_id)
        (self._started / container_id).unlink(missing_ok=True)

    async def update(self, container_id: ContainerId, resources: Resources, /) -> None:
        raise Unsupported(f"container {container_id}: runtime type example sets no limits")

    async def status(self, container_id: ContainerId, /) -> BackendStatus:
        process = await self._process(container_id)
        if process is None:
            raise NotFound(f"container {container_id} is unknown")
        return self._status(process)

    async def list(self) -> Inventory:
        statuses = [self._status(each) for each in await self._processes()]
        names = [SandboxId(path.name) for path in self._sandboxes.iterdir()]
        return Inventory(dict.fromkeys(names, True), {each.id: each for each in statuses})

    async def events(self) -> AsyncIterator[BackendEvent]:
        async for exit_ in self._supervisor.exits():
            if await self._process(ContainerId(exit_.process_id)) is not None:
                yield ContainerExited(ContainerId(exit_.process_id), exit_.status)

    async def close(self) -> None:
        """Nothing is held open."""

    def _status(self, process: LiveProcess) -> BackendStatus:
        started = (self._started / process.process_id).exists()
        running = BackendState.RUNNING if started else BackendState.CREATED
        return BackendStatus(
            ContainerId(process.process_id),
            SandboxId(process.labels[LABEL]),
            running if process.exit is None else BackendState.STOPPED,
            pid=process.pid if process.exit is None else None,
            exit=process.exit,
        )

    async def _processes(self) -> Sequence[LiveProcess]:
        return [each for each in await self._supervisor.processes() if LABEL in each.labels]

    async def _process(self, container_id: ContainerId) -> LiveProcess | None:
        return next(
            (p for p in await self._processes() if ContainerId(p.process_id) == container_id), None
        )


async def open_(context: RuntimeContext) -> RuntimeBackend:
    return ExampleBackend(context)


class ExamplePlugin(Hooks):
    @override
    @hookimpl
    def polypod_runtime_types(self) -> Sequence[RuntimeType]:
        return [
            RuntimeType(
                name="example",
                summary="plain processes of the host: an example for authors",
                open=open_,
                rootfs_forms=(RootfsForm.DIRECTORY, RootfsForm.OVERLAY),
                exceptions={
                    "check_hostname": "a plain process has the host's name",
                    "check_user": "it stays the server's user",
                    "check_update_keeps_the_container_running": "it has no cgroup, so no limits",
                },
            )
        ]


plugin = ExamplePlugin()
