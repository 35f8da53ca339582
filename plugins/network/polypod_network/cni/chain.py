"""The operations on a network: each plugin of its list in turn, or in the reverse order.

Spec:
    containernetworking/cni SPEC.md, section 2 (Execution protocol), section 3 (Attachments, deriving
    the configuration of each plugin).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NoReturn

from polypod.plugin.errors import BackendError, PolypodError
from polypod_network.cni.configuration import NetworkList, capabilities
from polypod_network.cni.notes import Note
from polypod_network.cni.plugins import Call, Plugins

_log = logging.getLogger(__name__)
_Plugin = Mapping[str, object]


class Chain:
    """Runs the lists of plugins."""

    def __init__(self, plugins: Plugins) -> None:
        self._plugins = plugins

    def find_plugins(self, network: NetworkList) -> None:
        """Raise BackendError, naming the first, unless all plugins of a network are there."""
        for plugin in network.plugins:
            self._plugins.find(network.name, str(plugin["type"]))

    async def add(self, note: Note) -> Mapping[str, object]:
        """Attach; return the last plugin's result. What a failure leaves is `delete`'s.

        Raises:
            PolypodError: a plugin failed; the text names it.
        """
        result: Mapping[str, object] | None = None
        for plugin in note.network.plugins:
            config = derived(plugin, replace(note, result=result))
            answer = await self._run(note, plugin, "ADD", config)
            if answer is None:
                raise BackendError(
                    f"network {note.network.name!r}: plugin {plugin['type']!r}: ADD: it printed no "
                    "result"
                )
            # A plugin that leaves the version out means the one that it was called with.
            result = {"cniVersion": note.network.version, **answer}
        return result or {}

    async def delete(self, note: Note) -> None:
        """Take back. Every plugin gets its turn, whichever failed: an address is not held hostage.

        Raises:
            PolypodError: one failed; the call can be repeated.
        """
        failures: list[PolypodError] = []
        previous = note if note.network.at_least("0.4.0") else replace(note, result=None)
        for plugin in reversed(note.network.plugins):
            try:
                await self._run(note, plugin, "DEL", derived(plugin, previous))
            except PolypodError as error:
                failures.append(error)
        if failures:
            _raise(failures)

    async def check(self, note: Note) -> None:
        """Have each plugin look whether the attachment is as its result says.

        Networks that know no CHECK (before 0.4.0, or switched off) are as they should be.

        Raises:
            PolypodError: it is not.
        """
        if note.network.disable_check or not note.network.at_least("0.4.0"):
            return
        for plugin in note.network.plugins:
            await self._run(note, plugin, "CHECK", derived(plugin, note))

    async def status(self, network: NetworkList) -> None:
        """Ask whether pods can be attached; without STATUS (before 1.1.0), whether the plugins exist.

        Raises:
            PolypodError: they cannot; the text says why.
        """
        self.find_plugins(network)
        if not network.at_least("1.1.0"):
            return
        for plugin in network.plugins:
            config = _base(plugin, network)
            await self._plugins.run(network.name, str(plugin["type"]), Call("STATUS"), config)

    async def collect(self, network: NetworkList, valid: Sequence[tuple[str, str]]) -> None:
        """Have plugins give back whatever belongs to none of the (sandbox, interface) pairs.

        Networks before 1.1.0, those that forbid it, and plugins that do not know it are left alone.

        Raises:
            PolypodError: plugins failed; all got their turn.
        """
        if network.disable_gc or not network.at_least("1.1.0"):
            return
        attachments = [{"containerID": one, "ifname": two} for one, two in valid]
        failures: list[PolypodError] = []
        for plugin in network.plugins:
            kind = str(plugin["type"])
            config = {**_base(plugin, network), "cni.dev/valid-attachments": attachments}
            try:
                if "1.1.0" in await self._plugins.versions(network.name, kind):
                    await self._plugins.run(network.name, kind, Call("GC"), config)
            except PolypodError as error:
                failures.append(error)
        if failures:
            _raise(failures)

    async def _run(
        self, note: Note, plugin: _Plugin, command: str, config: Mapping[str, object]
    ) -> Mapping[str, object] | None:
        call = Call(command, note.sandbox_id, note.netns, note.interface, note.arguments)
        return await self._plugins.run(note.network.name, str(plugin["type"]), call, config)


def derived(plugin: _Plugin, note: Note) -> dict[str, object]:
    """Return what one plugin gets on stdin: its part of the list, and what the runtime adds."""
    config = _base(plugin, note.network)
    wanted = capabilities(plugin) & note.capability_arguments.keys()
    if wanted:
        config["runtimeConfig"] = {key: note.capability_arguments[key] for key in sorted(wanted)}
    if note.result is not None:
        config["prevResult"] = note.result
    return config


def _base(plugin: _Plugin, network: NetworkList) -> dict[str, object]:
    config = {key: value for key, value in plugin.items() if key != "capabilities"}
    return {**config, "cniVersion": network.version, "name": network.name}


def _raise(failures: Sequence[PolypodError]) -> NoReturn:
    first, *others = failures
    if not others:
        raise first
    raise BackendError("; ".join(str(each) for each in failures)) from first
