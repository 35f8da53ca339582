"""The entry point: offers the simulator, and the stores and networks that go with it."""

from __future__ import annotations

from collections.abc import Sequence

from polypod.plugin.hooks import Hooks, hookimpl, override
from polypod.plugin.images import ImageStoreType
from polypod.plugin.network import NetworkType
from polypod.plugin.runtime import RuntimeType
from polypod.testing.memory_images import MEMORY_IMAGES
from polypod.testing.memory_network import MEMORY_NETWORK
from polypod.testing.simulator import simulator_type


class SimulatorPlugin(Hooks):
    """Offers ``simulator``, ``memory`` images and a ``memory`` network: a server without root."""

    @override
    @hookimpl
    def polypod_runtime_types(self) -> Sequence[RuntimeType]:
        """Offer the simulator."""
        return (simulator_type(sandbox_namespaces=frozenset({"network"})),)

    @override
    @hookimpl
    def polypod_image_stores(self) -> Sequence[ImageStoreType]:
        """Offer images in memory."""
        return (MEMORY_IMAGES,)

    @override
    @hookimpl
    def polypod_network_types(self) -> Sequence[NetworkType]:
        """Offer addresses without links."""
        return (MEMORY_NETWORK,)


plugin = SimulatorPlugin()
