"""Plugins: found by entry points, isolated when they fail, and driven through one typed façade.

Nothing else in polypod touches pluggy's ``.hook``.
"""

from polypod.registry.overview import overview
from polypod.registry.records import Offer, PluginInfo
from polypod.registry.registry import Registry

__all__ = ["Offer", "PluginInfo", "Registry", "overview"]
