"""Which plugin set which field: two may not set one."""

from __future__ import annotations

from polypod_nri.wire import api


class Owners:
    """Who owns the fields of one container. Fields are names of ``Field``; some have keys."""

    def __init__(self) -> None:
        self._owners: dict[tuple[str, str], str] = {}

    def claim(self, field: str, key: str, plugin: str) -> str:
        """Make a field a plugin's; return the name of another one that has it, or ``""``."""
        owner = self._owners.setdefault((field, key), plugin)
        return "" if owner == plugin else owner

    def add(self, field: str, plugin: str) -> None:
        """Add a plugin to those that a field has: several may add to it."""
        former = self._owners.get((field, ""))
        self._owners[field, ""] = plugin if not former else f"{former},{plugin}"

    def clear(self, field: str, key: str = "") -> None:
        """Make a field nobody's."""
        self._owners.pop((field, key), None)

    def message(self, container_id: str) -> api.OwningPlugins:
        """Return it as plugins that validate see it."""
        found = api.OwningPlugins()
        owners = found.owners[container_id]
        for (field, key), plugin in self._owners.items():
            number = api.Field.Value(field)
            if key:
                owners.compound[number].owners[key] = plugin
            else:
                owners.simple[number] = plugin
        return found
