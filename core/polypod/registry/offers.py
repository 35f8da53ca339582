"""The offers of plugins: collected once, checked, each name once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from polypod.plugin.errors import AlreadyExists, NotFound
from polypod.plugin.images import ImageStoreType
from polypod.plugin.network import NetworkType
from polypod.plugin.observer import CommandType, ObserverType
from polypod.plugin.runtime import RuntimeType
from polypod.registry.guard import PluginFault
from polypod.registry.records import Offer

T = TypeVar("T")


@dataclass(slots=True)
class Kind(Generic[T]):
    """One kind of offer, and what was offered of it."""

    hook: str
    word: str
    type: type[T]
    offered: dict[str, T] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    """Name of an offer → its plugin."""

    def check(self, answer: object) -> list[T]:
        """Return a hook's answer as what it has to be.

        Raises:
            PluginFault: it is something else.
        """
        if not isinstance(answer, (list, tuple)):
            raise PluginFault(
                f"{self.hook} returned a {type(answer).__name__}, not a sequence of "
                f"{self.type.__name__}"
            )
        return [self._checked(each) for each in answer]

    def _checked(self, each: Any) -> T:  # noqa: ANN401 - a plugin may answer anything
        if not isinstance(each, self.type):
            raise PluginFault(
                f"{self.hook} offered a {type(each).__name__}, not a {self.type.__name__}"
            )
        facts: Any = each
        if not isinstance(facts.name, str) or not facts.name:
            raise PluginFault(f"{self.hook} offered a {self.word} without a name: {facts.name!r}")
        if not callable(facts.run if isinstance(facts, CommandType) else facts.open):
            raise PluginFault(
                f"{self.hook} offered {self.word} {facts.name!r} that cannot be opened"
            )
        return each

    def take(self, plugin: str, each: Any) -> Offer:  # noqa: ANN401 - checked before
        """Add one offer.

        Raises:
            AlreadyExists: another plugin, or this one, offers the name already.
        """
        if each.name in self.offered:
            raise AlreadyExists(
                f"plugins {self.owners[each.name]} and {plugin} both offer {self.word} "
                f"{each.name!r}: put one of them into plugins.disabled"
            )
        self.offered[each.name] = each
        self.owners[each.name] = plugin
        return Offer(self.word, each.name, each.summary, getattr(each, "unusable", ""))

    def require(self, name: str, failed: Mapping[str, str]) -> T:
        """Return an offer by name.

        Raises:
            NotFound: nobody offers it; the text names what there is, and plugins that failed.
        """
        found = self.offered.get(name)
        if found is None:
            known = ", ".join(sorted(self.offered)) or "none"
            broken = "".join(f"; plugin {who} failed: {why}" for who, why in failed.items())
            raise NotFound(f"no plugin offers {self.word} {name!r}; there are: {known}{broken}")
        return found


@dataclass(slots=True)
class Offers:
    """All kinds."""

    runtime_types: Kind[RuntimeType] = field(
        default_factory=lambda: Kind("polypod_runtime_types", "runtime type", RuntimeType)
    )
    image_stores: Kind[ImageStoreType] = field(
        default_factory=lambda: Kind("polypod_image_stores", "image store", ImageStoreType)
    )
    network_types: Kind[NetworkType] = field(
        default_factory=lambda: Kind("polypod_network_types", "network", NetworkType)
    )
    observers: Kind[ObserverType] = field(
        default_factory=lambda: Kind("polypod_observers", "observer", ObserverType)
    )
    commands: Kind[CommandType] = field(
        default_factory=lambda: Kind("polypod_commands", "command", CommandType)
    )

    def kinds(self) -> tuple[Kind[Any], ...]:
        """Return all of them, in the order in which they are shown."""
        return (
            self.runtime_types,
            self.image_stores,
            self.network_types,
            self.observers,
            self.commands,
        )
