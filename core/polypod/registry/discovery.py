"""From entry points to plugin objects, each one isolated from the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from polypod.plugin.errors import AlreadyExists
from polypod.plugin.hooks import PROJECT, Hooks
from polypod.registry.guard import PluginFault, bounded
from polypod.registry.records import Plugin

GROUP = "polypod"
HOOKS = tuple(name for name in vars(Hooks) if name.startswith("polypod_"))


def installed() -> Sequence[EntryPoint]:
    """Return the entry points of all installed plugins, by name."""
    return sorted(entry_points(group=GROUP), key=lambda point: point.name)


def load_all(
    points: Iterable[EntryPoint], disabled: Sequence[str], required: Sequence[str], timeout_s: float
) -> list[Plugin]:
    """Load what is not disabled; a plugin that fails says so in its record.

    Raises:
        AlreadyExists: two distributions give one plugin name.
    """
    plugins: dict[str, Plugin] = {}
    for point in points:
        found = _record(point, required)
        other = plugins.get(found.name)
        if other is not None:
            if other.distribution == found.distribution:
                continue  # one distribution, seen twice on the path
            raise AlreadyExists(
                f"distributions {other.distribution} and {found.distribution} both have a plugin "
                f"{found.name!r}: uninstall one of them"
            )
        plugins[found.name] = found
        if found.name in disabled:
            found.state, found.reason = "disabled", "by plugins.disabled"
            continue
        try:
            found.object, found.hooks = bounded(partial(_load, point), timeout_s, found.name)
        except Exception as error:  # noqa: BLE001 - one plugin's failure is that plugin's alone
            found.fail(f"{point.value} {error}")
    return list(plugins.values())


def _record(point: EntryPoint, required: Sequence[str]) -> Plugin:
    dist = point.dist
    return Plugin(
        point.name,
        dist.metadata["Name"] if dist is not None else "",
        dist.version if dist is not None else "",
        required=point.name in required,
    )


def _load(point: EntryPoint) -> tuple[Any, tuple[str, ...]]:
    candidate = point.load()
    return candidate, examine(candidate)


def examine(candidate: object) -> tuple[str, ...]:
    """Return the hooks that a plugin object implements.

    Raises:
        PluginFault: it is no plugin; the text says what to change.
    """
    if isinstance(candidate, type):
        raise PluginFault(f"is the class {candidate.__name__}: name an instance of it")
    if not isinstance(candidate, Hooks):
        raise PluginFault(
            f"is a {type(candidate).__name__}: name an instance of a subclass of polypod.plugin.Hooks"
        )
    _check_marks(candidate)
    try:  # a manager of its own: what fails half-way leaves nothing in the real one
        probe = new_manager()
        probe.register(candidate)
        probe.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginFault(f"does not fit the hooks: {error}") from error
    callers = probe.get_hookcallers(candidate) or []
    return tuple(sorted(caller.name for caller in callers))


def _check_marks(candidate: Hooks) -> None:
    """A hook without its mark would never be called, and nobody would notice."""
    for name in HOOKS:
        method = getattr(type(candidate), name)
        if method is not getattr(Hooks, name) and not hasattr(method, f"{PROJECT}_impl"):
            raise PluginFault(f"overrides {name} without @hookimpl")


def new_manager() -> pluggy.PluginManager:
    """Return a manager that knows our hooks."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    return manager
