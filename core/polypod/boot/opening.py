"""Opens what the configuration names: image stores, the network, handlers. Each is isolated.

What cannot be opened is known by its reason and stays away; the server starts without it, unless the
plugin that offers it is in ``plugins.required``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from polypod.boot.namespace_paths import NamespacePaths
from polypod.boot.places import Places
from polypod.boot.processes import SIMULATOR, Processes, is_simulated
from polypod.boot.standins import NoImages, NoNetwork
from polypod.config import Config, HandlerConfig
from polypod.lifecycle.parts import Handler
from polypod.lifecycle.views import HandlerView
from polypod.plugin.errors import FailedPrecondition, PolypodError
from polypod.plugin.images import ImageContext, ImageStore, ImageStoreType
from polypod.plugin.network import Network, NetworkContext
from polypod.plugin.rootfs import RootfsForm
from polypod.plugin.runtime import Narrowed, RuntimeContext, RuntimeType
from polypod.registry import Registry

log = logging.getLogger(__name__)
T = TypeVar("T")

OPEN_S = 60.0
"""For opening one part: longer than a slow disk takes, shorter than a unit's start limit."""


@dataclass(slots=True)
class Opener:
    """Opens parts once each, and closes them in reverse order through `closers`."""

    config: Config
    registry: Registry
    places: Places
    processes: Processes
    closers: AsyncExitStack
    _stores: dict[str, tuple[ImageStoreType, ImageStore]] = field(default_factory=dict)
    _once: dict[int, _Once] = field(default_factory=dict)
    """Of each open backend, by its identity: what closes it, whoever comes first."""

    @property
    def stores(self) -> Mapping[str, ImageStore]:
        """The image stores that are open, by name."""
        return {name: store for name, (_kind, store) in self._stores.items()}

    async def handlers(self) -> tuple[dict[str, Handler], tuple[HandlerView, ...]]:
        """Open every configured handler; return those that work and those that do not.

        Raises:
            FailedPrecondition: one of a required plugin does not.
        """
        opened: dict[str, Handler] = {}
        unusable = []
        default = self.config.server.default_handler
        for name, wanted in self.config.handlers.items():
            found = await self.handler(name, wanted)
            if isinstance(found, Handler):
                opened[name] = found
            else:
                self._require("runtime type", wanted.type, found.unusable)
                unusable.append(replace(found, is_default=name == default))
        return opened, tuple(unusable)

    async def handler(self, name: str, wanted: HandlerConfig) -> Handler | HandlerView:
        """Open one handler, or return a view of it with the reason why it cannot be used."""
        try:
            return await self._handler(name, wanted)
        except Exception as error:  # noqa: BLE001 - a handler's failure is that handler's alone
            reason = _reason(error)
            log.error("handler unusable name=%s type=%s reason=%s", name, wanted.type, reason)
            return HandlerView(
                name, wanted.type, is_default=False, features=frozenset(), unusable=reason
            )

    async def close_handler(self, handler: Handler) -> None:
        """Close a backend before the server ends; what it fails with is logged."""
        try:
            await self._once[id(handler.backend)].close()
        except Exception:
            log.exception("handler did not close name=%s", handler.name)
        del self._once[id(handler.backend)]

    async def _handler(self, name: str, wanted: HandlerConfig) -> Handler:
        offered = self.registry.runtime_type(wanted.type)
        if offered.unusable:
            raise FailedPrecondition(offered.unusable)
        store_name = self._store_name(name, wanted)
        kind, store = await self._store(store_name)
        if not set(kind.forms) & set(offered.rootfs_forms):
            raise FailedPrecondition(
                f"image store {store_name!r} makes {_words(kind.forms)}, the type accepts "
                f"{_words(offered.rootfs_forms)}"
            )
        offered = _formed(name, wanted.rootfs_form, offered, kind)
        root, state = self.places.own("handlers", name)
        context = RuntimeContext(
            handler=name,
            options=wanted.options,
            root=root,
            state=state,
            cgroup_parent=self.config.server.cgroup_parent,
            supervisor=self.processes.supervisor,
        )
        backend = await _opened(offered.open(context))
        self._once[id(backend)] = once = _Once(backend.close)
        self.closers.push_async_callback(once.close)
        if isinstance(backend, Narrowed):
            offered = replace(offered, features=offered.features & backend.features)
        return Handler(name, offered, backend, store)

    async def _store(self, name: str) -> tuple[ImageStoreType, ImageStore]:
        if name not in self._stores:
            kind = self.registry.image_store(name)
            if kind.unusable:
                raise FailedPrecondition(f"image store {name!r}: {kind.unusable}")
            root, state = self.places.own("images", name)
            store = await _opened(kind.open(ImageContext(name, self.config.images, root, state)))
            self.closers.push_async_callback(store.close)
            self._stores[name] = (kind, store)
        return self._stores[name]

    async def default_store(self, handlers: Mapping[str, Handler]) -> ImageStore:
        """Return the store that PullImage without a handler fills: the default handler's.

        Raises:
            FailedPrecondition: it does not open, and its plugin is required.
        """
        default = self.config.server.default_handler
        if default in handlers:
            return handlers[default].image_store
        name = self._store_name(default, self.config.handlers[default])
        try:
            return (await self._store(name))[1]
        except Exception as error:  # noqa: BLE001 - see `handlers`
            log.error("image store unusable name=%s reason=%s", name, _reason(error))
            self._require("image store", name, _reason(error))
            return NoImages(_reason(error), self.places.root)

    async def network(self) -> Network:
        """Open the network, or return one that says why it is not there.

        Raises:
            FailedPrecondition: it does not open, and its plugin is required.
        """
        name = str(self.config.network.get("type", ""))
        if is_simulated(self.config) and not self.config.is_set("network.type"):
            name = "memory"
        try:
            kind = self.registry.network_type(name)
            if kind.unusable:
                raise FailedPrecondition(kind.unusable)
            root, state = self.places.own("network", name)
            network = await _opened(kind.open(NetworkContext(self.config.network, root, state)))
            if kind.needs_path:
                network = NamespacePaths(network, self.places.state / "namespace-paths")
        except Exception as error:  # noqa: BLE001 - see `handlers`
            log.error("network unusable type=%s reason=%s", name, _reason(error))
            self._require("network", name, _reason(error))
            return NoNetwork(f"network {name!r}: {_reason(error)}")
        self.closers.push_async_callback(network.close)
        return network

    def _store_name(self, handler: str, wanted: HandlerConfig) -> str:
        """Return a handler's store; the simulator's is the one in memory unless it is told another."""
        told = self.config.is_set(f"handlers.{handler}.image_store")
        return "memory" if wanted.type == SIMULATOR and not told else wanted.image_store

    def _require(self, kind: str, name: str, reason: str) -> None:
        for plugin in self.registry.plugins():
            if plugin.name in self.config.plugins.required and any(
                offer.kind == kind and offer.name == name for offer in plugin.offers
            ):
                raise FailedPrecondition(
                    f"required plugin {plugin.name!r}: {kind} {name!r} cannot be used: {reason}"
                )


class _Once:
    """Closes a part the first time that it is asked to."""

    def __init__(self, close: Callable[[], Awaitable[None]]) -> None:
        self._close: Callable[[], Awaitable[None]] | None = close

    async def close(self) -> None:
        close, self._close = self._close, None
        if close is not None:
            await close()


def _formed(name: str, form: str, offered: RuntimeType, store: ImageStoreType) -> RuntimeType:
    """Narrow a type to the form of root file systems that the configuration wants.

    Raises:
        FailedPrecondition: type or store does not have it.
    """
    if not form:
        return offered
    for what, forms in (
        ("the type accepts", offered.rootfs_forms),
        ("its store makes", store.forms),
    ):
        if form not in forms:
            raise FailedPrecondition(
                f"handlers.{name}.rootfs_form is {form!r}, but {what} {_words(forms)}"
            )
    return replace(offered, rootfs_forms=(RootfsForm(form),))


async def _opened(opening: Awaitable[T]) -> T:
    try:
        return await asyncio.wait_for(opening, OPEN_S)
    except TimeoutError as error:
        raise FailedPrecondition(f"did not open within {OPEN_S:g} s") from error


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, (PolypodError, OSError)) else repr(error)


def _words(forms: Any) -> str:  # noqa: ANN401 - any iterable of enum members
    return ", ".join(str(form) for form in forms)
