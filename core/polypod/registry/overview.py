"""``polypod plugins``: what is installed, what it offers, and what of that works here."""

from __future__ import annotations

from polypod.config import Config
from polypod.registry.records import PluginInfo
from polypod.registry.registry import Registry


def overview(config: Config) -> list[tuple[str, str, str, str]]:
    """Return rows of plugin, kind, name and state, as `polypod plugins` prints them.

    A required plugin that failed is a row like the others: this command is there to show it.
    """
    settings = config.plugins
    registry = Registry.load(disabled=settings.disabled, order=settings.order)
    return [row for plugin in registry.plugins() for row in _rows(plugin)]


def _rows(plugin: PluginInfo) -> list[tuple[str, str, str, str]]:
    name = f"{plugin.name} {plugin.version}".rstrip()
    if plugin.state != "loaded":
        return [(name, "plugin", plugin.distribution, f"{plugin.state}: {plugin.reason}")]
    rows = [
        (
            name,
            offer.kind,
            offer.name,
            f"unusable: {offer.unusable}" if offer.unusable else "usable",
        )
        for offer in plugin.offers
    ]
    offering = {
        "polypod_runtime_types",
        "polypod_image_stores",
        "polypod_network_types",
        "polypod_observers",
        "polypod_commands",
    }
    rows += [(name, "hook", hook, "active") for hook in plugin.hooks if hook not in offering]
    return rows or [(name, "plugin", plugin.distribution, "loaded, offers nothing")]
