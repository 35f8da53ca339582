"""RunPodSandbox: from a request to a READY sandbox, or to nothing at all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from polypod.lifecycle.checks import check_sandbox
from polypod.lifecycle.facts import sandbox_facts
from polypod.lifecycle.heart import Heart
from polypod.lifecycle.objects import Sandbox, sandbox_spec
from polypod.lifecycle.parts import Handler
from polypod.lifecycle.records import SandboxRecord
from polypod.lifecycle.rollback import Rollback
from polypod.lifecycle.states import SandboxEvent
from polypod.lifecycle.steps import bounded, step
from polypod.lifecycle.teardown import Teardown
from polypod.lifecycle.trees import remove_tree
from polypod.lifecycle.user_namespaces import give, pod_maps
from polypod.lifecycle.views import SandboxState
from polypod.plugin.errors import AlreadyExists, BackendError
from polypod.plugin.ids import SandboxId, new_id
from polypod.plugin.network import AttachRequest
from polypod.plugin.requests import NamespaceMode, SandboxConfig, SandboxRequest
from polypod.spec.namespaces import has_user_namespace
from polypod.spec.sysctls import of_namespaces

_Step = Callable[[Sandbox, Rollback], Awaitable[None]]


class Sandboxes:
    """Makes sandboxes."""

    def __init__(self, heart: Heart, teardown: Teardown) -> None:
        self._heart = heart
        self._teardown = teardown
        self._steps: tuple[tuple[str, _Step], ...] = (
            ("make namespaces", self._make_namespaces),
            ("attach to the network", self._attach),
            ("write files", self._write_files),  # its addresses stand in hosts
            ("create in the backend", self._create),
        )

    async def run(self, config: SandboxConfig, handler: str) -> SandboxId:
        """Run a sandbox, or return the one that the same request has made or is making.

        Raises:
            AlreadyExists: another sandbox has the same metadata.
            NotFound: no such handler.
            Unsupported: the handler cannot do what was asked.

        Spec:
            kubernetes/cri-api api.proto, RuntimeService.RunPodSandbox: "must ensure the sandbox is
            in the ready state on success". The kubelet repeats the call with the same metadata.
        """
        heart, name = self._heart, config.metadata
        key = ("run", name)
        holder = heart.sandbox_names.holder(name)
        if holder is not None and not heart.joins.running(key):
            await self._yield_name(holder, config, handler)
        sandbox_id = await heart.joins.run(key, lambda: self._run_or_find(config, handler))
        sandbox = heart.sandboxes.exact(sandbox_id)
        if sandbox is None or not _same(sandbox, config, handler):
            raise AlreadyExists(
                f"sandbox name {name.namespace}/{name.name} (uid {name.uid}, attempt {name.attempt}) "
                f"is reserved for sandbox {sandbox_id}, which was asked for with another "
                "configuration: remove that one or raise the attempt"
            )
        sandbox.delivered = True
        return sandbox_id

    async def _yield_name(self, holder: SandboxId, config: SandboxConfig, handler: str) -> None:
        """Remove a finished sandbox that nobody was told of, if it is not what is asked for now (F15)."""
        sandbox = self._heart.sandboxes.exact(holder)
        if sandbox is not None and not sandbox.delivered and not _same(sandbox, config, handler):
            await self._teardown.remove(holder)

    async def _run_or_find(self, config: SandboxConfig, requested: str) -> SandboxId:
        holder = self._heart.sandbox_names.holder(config.metadata)
        if holder is None:
            return await self._run(config, requested)
        sandbox = self._heart.sandboxes.exact(holder)
        if sandbox is not None and sandbox.record.state is not SandboxState.READY:
            raise AlreadyExists(
                f"sandbox {holder} has the same metadata and is {sandbox.record.state}: "
                "remove it first or raise the attempt"
            )
        return holder

    async def _run(self, config: SandboxConfig, requested: str) -> SandboxId:
        heart = self._heart
        handler = self._place(config, requested)
        check_sandbox(handler, config)
        # What the files cannot say, and sysctls that are unsafe, are refused before anything is made.
        heart.parts.builder.sysctls(config)
        heart.parts.builder.sandbox_files(config)
        sandbox = heart.adopt_sandbox(self._record(config, requested, handler))
        what = f"sandbox {sandbox.record.id}"
        undo = heart.rollback(f"run {what}")
        try:
            await bounded(
                heart.clock,
                heart.settings.run_s,
                what,
                sandbox.explain,
                self._make(sandbox, undo, what),
            )
        except BaseException as error:
            self._failed(sandbox, undo, error)
            raise
        heart.parts.hooks.notify_sandbox_ready(sandbox.record.id, config, handler.name)
        await heart.failpoints.hit("sandbox.ready")
        return sandbox.record.id

    async def _make(self, sandbox: Sandbox, undo: Rollback, what: str) -> None:
        heart = self._heart
        async with undo:
            await heart.failpoints.hit("sandbox.reserved")
            heart.commit_sandbox(sandbox)
            await heart.failpoints.hit("sandbox.recorded")
            for name, make in self._steps:
                with step(sandbox.explain, what, name):
                    await make(sandbox, undo)
            with step(sandbox.explain, what, "ask plugins"):
                await heart.parts.hooks.before_sandbox_ready(sandbox_facts(sandbox))
            heart.move_sandbox(sandbox, SandboxEvent.READIED)
            undo.commit()

    def _failed(self, sandbox: Sandbox, undo: Rollback, error: BaseException) -> None:
        """Forget a sandbox that was undone; keep one that could not be, so that it can be removed."""
        heart = self._heart
        if not undo.failures:
            heart.forget_sandbox(sandbox)
            heart.parts.hooks.notify_sandbox_removed(sandbox.record.id)
            return
        stuck = "; ".join(f"{name}: {failure}" for name, failure in undo.failures)
        sandbox.explain.note(f"undo failed: {stuck}")
        heart.move_sandbox(
            sandbox, SandboxEvent.STUCK, message=f"{error}; could not be undone: {stuck}"
        )

    def _place(self, config: SandboxConfig, requested: str) -> Handler:
        """Choose the handler: a plugin's word, else the request's."""
        heart = self._heart
        asked = heart.handler(requested)
        chosen = heart.parts.hooks.choose_handler(SandboxRequest(config, requested))
        return asked if chosen is None else heart.handler(chosen)

    def _record(self, config: SandboxConfig, requested: str, handler: Handler) -> SandboxRecord:
        heart = self._heart
        sandbox_id = SandboxId(new_id())
        kinds = sandbox_namespaces(handler.type.sandbox_namespaces, config)
        parent = config.cgroup_parent or heart.parts.cgroup_parent
        return SandboxRecord(
            id=sandbox_id,
            config=config,
            created_at_ns=heart.clock.now_ns(),
            handler=requested,
            chosen_handler=handler.name,
            cgroup=f"{parent.rstrip('/')}/{sandbox_id}",
            namespaces=tuple(sorted(kinds)),
            networked="network" in kinds,
        )

    # Steps. Each pushes its undo before it begins.

    async def _make_namespaces(self, sandbox: Sandbox, undo: Rollback) -> None:
        heart, record = self._heart, sandbox.record
        kinds = frozenset(record.namespaces)
        if kinds:
            undo.push("drop namespaces", lambda: self._teardown.drop_namespaces(sandbox))
            sandbox.namespaces = await heart.parts.supervisor.make_namespaces(
                record.id,
                kinds,
                hostname=record.config.hostname,
                # What belongs to namespaces that a backend makes is the backend's.
                sysctls=of_namespaces(heart.parts.builder.sysctls(record.config), kinds),
                **({"ids": pod_maps(record.config)} if "user" in kinds else {}),
            )
        await heart.failpoints.hit("sandbox.namespaces")

    async def _attach(self, sandbox: Sandbox, undo: Rollback) -> None:
        heart, record = self._heart, sandbox.record
        if record.networked:
            undo.push("detach from the network", lambda: self._teardown.detach(sandbox))
            attachment = await heart.parts.network.attach(_attach_request(sandbox))
            await heart.failpoints.hit("sandbox.attached")
            heart.commit_sandbox(sandbox, attachment=attachment)
        await heart.failpoints.hit("sandbox.attachment-recorded")

    async def _write_files(self, sandbox: Sandbox, undo: Rollback) -> None:
        undo.push("remove files", lambda: remove_tree(sandbox.directory))
        sandbox.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        files = self._heart.parts.builder.sandbox_files(sandbox.record.config, sandbox.view.ips)
        for name, text in files.items():
            (sandbox.directory / name).write_text(text, encoding="utf-8")
        maps = pod_maps(sandbox.record.config)
        give((sandbox.directory / name for name in files), maps)
        await self._heart.failpoints.hit("sandbox.files")

    async def _create(self, sandbox: Sandbox, undo: Rollback) -> None:
        backend = self._heart.handler_of(sandbox).backend
        undo.push("remove from the backend", lambda: backend.remove_sandbox(sandbox.record.id))
        undo.push("stop in the backend", lambda: backend.stop_sandbox(sandbox.record.id))
        await backend.create_sandbox(sandbox_spec(sandbox))
        await self._heart.failpoints.hit("sandbox.created")


def _attach_request(sandbox: Sandbox) -> AttachRequest:
    made, record = sandbox.namespaces, sandbox.record
    if made is None or made.netlink is None:
        raise BackendError("the supervisor made no network namespace")
    return AttachRequest(
        sandbox_id=record.id,
        metadata=record.config.metadata,
        namespace=made.fds["network"],
        netlink=made.netlink,
        port_mappings=record.config.port_mappings,
        annotations=record.config.annotations,
    )


def _same(sandbox: Sandbox, config: SandboxConfig, handler: str) -> bool:
    return sandbox.record.config == config and sandbox.record.handler == handler


def sandbox_namespaces(offered: frozenset[str], config: SandboxConfig) -> frozenset[str]:
    """Return the kinds that core makes: what the type wants, less what the request shares otherwise.

    A pod on the host's network keeps the host's name too; a pid namespace is the pod's only in POD
    mode (in CONTAINER mode each container gets its own).
    """
    modes = config.security.namespaces
    own = {
        "network": modes.network is not NamespaceMode.NODE,
        "uts": modes.network is not NamespaceMode.NODE,
        "ipc": modes.ipc is not NamespaceMode.NODE,
        "pid": modes.pid is NamespaceMode.POD,
        "user": has_user_namespace(modes),
    }
    return frozenset(kind for kind in offered if own[kind])
