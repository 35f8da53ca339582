"""The one place that drives pluggy: a typed façade over the hooks of all plugins."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import EntryPoint
from typing import Any, NoReturn, TypeVar

from polypod.plugin.errors import BackendError, FailedPrecondition, PolypodError
from polypod.plugin.hooks import Hooks
from polypod.plugin.ids import ContainerId, SandboxId
from polypod.plugin.images import ImageStoreType
from polypod.plugin.network import NetworkType
from polypod.plugin.observer import CommandType, ContainerFacts, ObserverType, SandboxFacts
from polypod.plugin.oci import Linux, OciConfig, Process
from polypod.plugin.requests import ContainerConfig, Resources, SandboxConfig, SandboxRequest
from polypod.plugin.runtime import PodResources, RuntimeType
from polypod.plugin.services import ExitStatus
from polypod.registry.discovery import examine, installed, load_all, new_manager
from polypod.registry.guard import PluginFault, bounded, bounded_async, measured
from polypod.registry.offers import Kind, Offers
from polypod.registry.records import Plugin, PluginInfo

log = logging.getLogger(__name__)
T = TypeVar("T")

HOOK_TIMEOUT_S = 5.0
LOAD_TIMEOUT_S = 30.0


class Registry:
    """All plugins. Implements `polypod.lifecycle.ports.HookCalls`."""

    def __init__(
        self,
        plugins: Iterable[Plugin],
        *,
        order: Sequence[str] = (),
        hook_timeout_s: float = HOOK_TIMEOUT_S,
        load_timeout_s: float = LOAD_TIMEOUT_S,
    ) -> None:
        rank = {name: place for place, name in enumerate(order)}
        self._plugins = sorted(plugins, key=lambda p: (rank.get(p.name, len(rank)), p.name))
        self._hook_timeout_s = hook_timeout_s
        self._load_timeout_s = load_timeout_s
        self._offers = Offers()
        self._manager = new_manager()
        for plugin in self._plugins:
            if plugin.object is not None:
                self._admit(plugin)
        self._require()

    @classmethod
    def load(
        cls,
        *,
        disabled: Sequence[str] = (),
        required: Sequence[str] = (),
        order: Sequence[str] = (),
        points: Iterable[EntryPoint] | None = None,
        hook_timeout_s: float = HOOK_TIMEOUT_S,
        load_timeout_s: float = LOAD_TIMEOUT_S,
    ) -> Registry:
        """Load the installed plugins.

        Args:
            disabled: names that are not even imported.
            required: names without which this raises.
            order: in which the hooks run; plugins not named follow by name.
            points: entry points to use instead of the installed ones.
            hook_timeout_s: for one hook of one plugin.
            load_timeout_s: for the import of one plugin, and for each of its offers.

        Raises:
            FailedPrecondition: a required plugin is not there or failed.
            AlreadyExists: two plugins have one name, or offer one.
        """
        found = load_all(
            installed() if points is None else points, disabled, required, load_timeout_s
        )
        _warn_unknown({"disabled": disabled, "order": order}, found)
        _require_present(required, found)
        return cls(found, order=order, hook_timeout_s=hook_timeout_s, load_timeout_s=load_timeout_s)

    @classmethod
    def of(
        cls,
        plugins: Mapping[str, Hooks],
        *,
        order: Sequence[str] = (),
        required: Sequence[str] = (),
        hook_timeout_s: float = HOOK_TIMEOUT_S,
        load_timeout_s: float = LOAD_TIMEOUT_S,
    ) -> Registry:
        """Return a registry of plugin objects at hand: for tests, and for servers built in code."""
        records = []
        for name, candidate in plugins.items():
            record = Plugin(name, object=candidate, required=name in required)
            try:
                record.hooks = examine(candidate)
            except PluginFault as fault:
                record.fail(str(fault))
            records.append(record)
        return cls(
            records, order=order, hook_timeout_s=hook_timeout_s, load_timeout_s=load_timeout_s
        )

    # What is there

    @property
    def runtime_types(self) -> Mapping[str, RuntimeType]:
        """All runtime types by name, unusable ones too."""
        return self._offers.runtime_types.offered

    @property
    def image_stores(self) -> Mapping[str, ImageStoreType]:
        """All image stores by name, unusable ones too."""
        return self._offers.image_stores.offered

    @property
    def network_types(self) -> Mapping[str, NetworkType]:
        """All networks by name, unusable ones too."""
        return self._offers.network_types.offered

    @property
    def observers(self) -> Mapping[str, ObserverType]:
        """All observers by name, unusable ones too."""
        return self._offers.observers.offered

    @property
    def commands(self) -> Mapping[str, CommandType]:
        """All sub-commands by name."""
        return self._offers.commands.offered

    def runtime_type(self, name: str) -> RuntimeType:
        """Return a runtime type. NotFound names those that there are, and plugins that failed."""
        return self._offers.runtime_types.require(name, self._failed())

    def image_store(self, name: str) -> ImageStoreType:
        """Return an image store; NotFound as in `runtime_type`."""
        return self._offers.image_stores.require(name, self._failed())

    def network_type(self, name: str) -> NetworkType:
        """Return a network; NotFound as in `runtime_type`."""
        return self._offers.network_types.require(name, self._failed())

    def plugins(self) -> Sequence[PluginInfo]:
        """Return every plugin found, in hook order: also those that are disabled or failed."""
        return [plugin.info for plugin in self._plugins]

    def _failed(self) -> dict[str, str]:
        return {p.name: p.reason for p in self._plugins if p.state == "failed"}

    # Start

    def _admit(self, plugin: Plugin) -> None:
        """Ask a plugin for its offers; all of them are taken, or none and the plugin has failed."""
        answers: list[tuple[Kind[Any], list[Any]]] = []
        try:
            for kind in self._offers.kinds():
                if kind.hook in plugin.hooks:
                    ask = getattr(plugin.object, kind.hook)
                    answers.append(
                        (kind, kind.check(bounded(ask, self._load_timeout_s, plugin.name)))
                    )
        except (PluginFault, FailedPrecondition) as fault:
            plugin.fail(str(fault))
            log.error("plugin failed name=%s reason=%s", plugin.name, fault)
            return
        for kind, answer in answers:
            plugin.offers += [kind.take(plugin.name, each) for each in answer]
        self._manager.register(plugin.object, plugin.name)

    def _require(self) -> None:
        for plugin in self._plugins:
            if plugin.required and plugin.state != "loaded":
                raise FailedPrecondition(
                    f"required plugin {plugin.name!r} is {plugin.state}: {plugin.reason}"
                )

    # Choose

    def choose_handler(self, request: SandboxRequest, /) -> str | None:
        """Return the first opinion of a plugin; see `polypod.lifecycle.ports.HookCalls`."""
        for plugin, call in self._implementations("polypod_choose_handler"):
            try:
                answer = measured(partial(call, request=request), self._hook_timeout_s)
                if answer is not None and not isinstance(answer, str):
                    raise PluginFault(f"returned a {type(answer).__name__}, not a handler's name")
            except FailedPrecondition as refusal:
                raise FailedPrecondition(f"plugin {plugin.name} refuses: {refusal}") from refusal
            except PluginFault as fault:
                self._raise(plugin, "polypod_choose_handler", "sandbox", fault)
            plugin.failures = 0
            if answer is not None:
                return answer
        return None

    # Adjust

    async def adjust(
        self,
        container_id: ContainerId,
        sandbox_id: SandboxId,
        sandbox: SandboxConfig,
        request: ContainerConfig,
        config: OciConfig,
        /,
    ) -> OciConfig:
        """Hand the config from plugin to plugin; see `polypod.lifecycle.ports.HookCalls`.

        A coroutine function runs in the server's loop, a plain function in a thread of its own.

        Raises:
            BackendError: a plugin raised, hung or returned something else.
            FailedPrecondition: a plugin refuses the container.
        """
        hook, what = "polypod_adjust_container", f"container {container_id}"
        for plugin, call in self._implementations(hook):
            bound = partial(
                call,
                container_id=container_id,
                sandbox_id=sandbox_id,
                sandbox=sandbox,
                request=request,
                config=config,
            )
            config = await self._ask(plugin, hook, what, bound, partial(_adjusted, config))
        return config

    async def adjust_update(self, container: ContainerFacts, resources: Resources, /) -> Resources:
        """Hand new limits from plugin to plugin. Raises as `adjust`."""
        hook, what = "polypod_adjust_update", f"container {container.id}"
        for plugin, call in self._implementations(hook):
            bound = partial(call, container=container, resources=resources)
            resources = await self._ask(plugin, hook, what, bound, partial(_limits, resources))
        return resources

    async def before_sandbox_ready(self, sandbox: SandboxFacts, /) -> None:
        """Let every plugin see a new sandbox. Raises as `adjust`."""
        await self._before("polypod_before_sandbox_ready", "sandbox", sandbox=sandbox)

    async def before_sandbox_resize(self, sandbox: SandboxFacts, limits: PodResources, /) -> None:
        """Let every plugin see new limits of a pod. Raises as `adjust`."""
        await self._before(
            "polypod_before_sandbox_resize", "sandbox", sandbox=sandbox, limits=limits
        )

    async def before_container_start(self, container: ContainerFacts, /) -> None:
        """Let every plugin see a container that is about to start. Raises as `adjust`."""
        await self._before("polypod_before_container_start", "container", container=container)

    async def before_sandbox_stop(self, sandbox: SandboxFacts, /) -> None:
        """Let every plugin see a sandbox's end, whatever others do.

        Raises:
            PolypodError: what the first of those that failed raised; as `adjust`.
        """
        hook = "polypod_before_sandbox_stop"
        failures: list[PolypodError] = []
        for plugin, call in self._implementations(hook, observing=True):
            bound = partial(call, sandbox=sandbox)
            try:
                await self._ask(plugin, hook, f"sandbox {sandbox.id}", bound, _nothing)
            except PolypodError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    async def _before(self, hook: str, kind: str, **facts: Any) -> None:  # noqa: ANN401
        what = f"{kind} {facts[kind].id}"
        for plugin, call in self._implementations(hook):
            await self._ask(plugin, hook, what, partial(call, **facts), _nothing)

    async def _ask(
        self,
        plugin: Plugin,
        hook: str,
        what: str,
        call: Callable[[], object],
        judge: Callable[[object], T],
    ) -> T:
        """Return what a plugin's answer stands for. Raises as `adjust`."""
        try:
            answer = judge(await bounded_async(call, self._hook_timeout_s, plugin.name))
        except FailedPrecondition as refusal:
            raise FailedPrecondition(f"plugin {plugin.name} refuses {what}: {refusal}") from refusal
        except PluginFault as fault:
            self._raise(plugin, hook, what, fault)
        plugin.failures = 0
        return answer

    # Observe

    def notify_sandbox_ready(
        self, sandbox_id: SandboxId, sandbox: SandboxConfig, handler: str, /
    ) -> None:
        """Tell the plugins; never raises. So do all that follow."""
        self._tell("polypod_sandbox_ready", sandbox_id=sandbox_id, sandbox=sandbox, handler=handler)

    def notify_sandbox_stopped(self, sandbox_id: SandboxId, /) -> None:
        """See `polypod.plugin.hooks.Hooks.polypod_sandbox_stopped`."""
        self._tell("polypod_sandbox_stopped", sandbox_id=sandbox_id)

    def notify_sandbox_removed(self, sandbox_id: SandboxId, /) -> None:
        """See `polypod.plugin.hooks.Hooks.polypod_sandbox_removed`."""
        self._tell("polypod_sandbox_removed", sandbox_id=sandbox_id)

    def notify_sandbox_resized(self, sandbox: SandboxFacts, /) -> None:
        """See `polypod.plugin.hooks.Hooks.polypod_sandbox_resized`."""
        self._tell("polypod_sandbox_resized", sandbox=sandbox)

    def notify_container_created(self, container: ContainerFacts, /) -> None:
        """See `polypod.plugin.hooks.Hooks.polypod_container_created`."""
        self._tell("polypod_container_created", container=container)

    def notify_container_updated(self, container: ContainerFacts, /) -> None:
        """See `polypod.plugin.hooks.Hooks.polypod_container_updated`."""
        self._tell("polypod_container_updated", container=container)

    def notify_container_started(self, container_id: ContainerId, pid: int | None, /) -> None:
        """See `polypod.plugin.hooks.Hooks.polypod_container_started`."""
        self._tell("polypod_container_started", container_id=container_id, pid=pid)

    def notify_container_exited(self, container_id: ContainerId, status: ExitStatus, /) -> None:
        """See `polypod.plugin.hooks.Hooks.polypod_container_exited`."""
        self._tell("polypod_container_exited", container_id=container_id, status=status)

    def notify_container_removed(self, container_id: ContainerId, /) -> None:
        """See `polypod.plugin.hooks.Hooks.polypod_container_removed`."""
        self._tell("polypod_container_removed", container_id=container_id)

    def _tell(self, hook: str, /, **facts: object) -> None:
        for plugin, call in self._implementations(hook, observing=True):
            try:
                measured(partial(call, **facts), self._hook_timeout_s)
            except (PluginFault, FailedPrecondition) as fault:
                log.warning("plugin %s: %s failed: %s", plugin.name, hook, fault)
                self._count(plugin, fault)
            else:
                plugin.failures = 0

    # Calls

    def _implementations(
        self, hook: str, *, observing: bool = False
    ) -> Iterator[tuple[Plugin, Callable[..., object]]]:
        """Yield who implements a hook, in order; a required one that is broken fails the call.

        Raises:
            BackendError: a required plugin is broken, and to go on without it might be unsafe.
        """
        for plugin in self._plugins:
            if hook not in plugin.hooks or getattr(plugin.object, "asleep", False):
                continue
            if plugin.state == "loaded":
                yield plugin, _accepting(self._manager, plugin, hook)
            elif plugin.required and plugin.state == "broken" and not observing:
                raise BackendError(
                    f"required plugin {plugin.name!r} is broken ({plugin.reason}): repair it and "
                    "restart the server"
                )

    def _raise(self, plugin: Plugin, hook: str, what: str, fault: PluginFault) -> NoReturn:
        self._count(plugin, fault)
        raise BackendError(f"{what}: plugin {plugin.name}: {hook} {fault}") from fault

    def _count(self, plugin: Plugin, fault: Exception) -> None:
        if plugin.count(str(fault)):
            log.error("plugin broken name=%s reason=%s", plugin.name, plugin.reason)


def _accepting(manager: Any, plugin: Plugin, hook: str) -> Callable[..., object]:  # noqa: ANN401
    """Return a plugin's implementation of a hook; it gets the arguments that it names."""
    # pluggy's `.hook` is dynamic: this is the one line in polypod where its Any comes in.
    implementations = getattr(manager.hook, hook).get_hookimpls()
    found = next(each for each in implementations if each.plugin is plugin.object)
    function: Callable[..., object] = found.function
    if _takes_all(found, manager, hook):
        return function

    def call(**facts: object) -> object:
        return function(**{name: facts[name] for name in found.argnames})

    return call


def _takes_all(found: Any, manager: Any, hook: str) -> bool:  # noqa: ANN401 - pluggy's own types
    return set(found.argnames) == set(getattr(manager.hook, hook).spec.argnames)


def _adjusted(config: OciConfig, answer: object) -> OciConfig:
    """Return the config that a plugin's answer stands for.

    Raises:
        PluginFault: it is neither None nor a config that deserves the name.
    """
    if answer is None:
        return config
    if not isinstance(answer, OciConfig):
        raise PluginFault(f"returned a {type(answer).__name__}, not an OciConfig")
    for name, kind in (("process", Process), ("linux", Linux), ("mounts", tuple)):
        part = getattr(answer, name)
        if not isinstance(part, kind):
            raise PluginFault(
                f"returned a config whose {name} is a {type(part).__name__}, not a {kind.__name__}"
            )
    return answer


def _limits(resources: Resources, answer: object) -> Resources:
    """Return the limits that a plugin's answer stands for.

    Raises:
        PluginFault: it is neither None nor limits.
    """
    if answer is None:
        return resources
    if not isinstance(answer, Resources):
        raise PluginFault(f"returned a {type(answer).__name__}, not Resources")
    return answer


def _nothing(answer: object) -> None:
    """Raise PluginFault unless a plugin has answered nothing."""
    if answer is not None:
        raise PluginFault(f"returned a {type(answer).__name__}, not None")


def _warn_unknown(settings: Mapping[str, Sequence[str]], found: Sequence[Plugin]) -> None:
    known = [plugin.name for plugin in found]
    for key, names in settings.items():
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                log.warning("plugins.%s: no plugin %r is installed%s", key, name, hint)


def _require_present(required: Sequence[str], found: Sequence[Plugin]) -> None:
    known = sorted(plugin.name for plugin in found)
    for name in required:
        if name not in known:
            raise FailedPrecondition(
                f"required plugin {name!r} is not installed; installed are {', '.join(known)}"
            )
