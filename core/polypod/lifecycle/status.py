"""CRI's Status: conditions, handlers, features."""

from __future__ import annotations

from polypod.lifecycle.heart import Heart
from polypod.lifecycle.parts import Handler
from polypod.lifecycle.views import Condition, HandlerView, StatusView
from polypod.plugin.network import NetworkStatus
from polypod.plugin.runtime import Checkpointable, Execs, Forwards, Resizable, StatsSource


async def server_status(heart: Heart, *, verbose: bool) -> StatusView:
    """Return the conditions and what the handlers can do.

    Spec:
        kubernetes/cri-api api.proto, RuntimeService.Status; the kubelet reads RuntimeReady,
        NetworkReady and the handlers' features every five seconds.
    """
    parts = heart.parts
    default = parts.default_handler
    handlers = tuple(
        HandlerView(each.name, each.type.name, each.name == default, each.type.features)
        for each in parts.handlers.values()
    )
    return StatusView(
        conditions=(_runtime(heart), await _network(heart)),
        handlers=handlers + parts.unusable_handlers,
        supplemental_groups_policy=True,
        info=_info(heart) if verbose else {},
    )


def _runtime(heart: Heart) -> Condition:
    if heart.parts.default_handler in heart.parts.handlers:
        return Condition("RuntimeReady", status=True)
    return Condition(
        "RuntimeReady",
        status=False,
        reason="NoDefaultHandler",
        message=f"the default handler {heart.parts.default_handler!r} is not usable: see `polypod plugins`",
    )


async def _network(heart: Heart) -> Condition:
    try:
        found = await heart.parts.network.status()
    except Exception as error:  # noqa: BLE001 - a plugin's failure is the condition's content
        found = NetworkStatus(ready=False, reason="NetworkPluginFailed", message=repr(error))
    return Condition("NetworkReady", found.ready, found.reason, found.message)


def _info(heart: Heart) -> dict[str, object]:
    parts = heart.parts
    return {
        "root": str(parts.root),
        "state": str(parts.state),
        "defaultHandler": parts.default_handler,
        "handlers": {
            **{name: _facts(each) for name, each in parts.handlers.items()},
            **{
                each.name: {"type": each.type, "unusable": each.unusable}
                for each in parts.unusable_handlers
            },
        },
        "sandboxes": len(heart.sandboxes),
        "containers": len(heart.containers),
        "quarantined": dict(parts.database.quarantined()),
    }


_OPTIONAL = (Checkpointable, Execs, Forwards, Resizable, StatsSource)


def _facts(handler: Handler) -> dict[str, object]:
    """Return what a handler declares: its own features, which may be fewer than its type's."""
    backend: object = handler.backend
    return {
        "type": handler.type.name,
        "features": sorted(handler.type.features),
        "protocols": [each.__name__ for each in _OPTIONAL if isinstance(backend, each)],
        "sandboxNamespaces": sorted(handler.type.sandbox_namespaces),
        "exceptions": dict(handler.type.exceptions),
    }
