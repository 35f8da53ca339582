"""Counters of a container as JSON values: the namespaces engine's reader, run in the guest."""

from __future__ import annotations

from polypod.backend import usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def read(cgroups: Any, path: str) -> dict[str, int | None]:  # noqa: ANN401 - the engine's writer
    """Return the fields of `polypod.plugin.runtime.ContainerUsage`."""
    found = usage.read(cgroups, path)
    return {name: getattr(found, name) for name in found.__slots__}
