"""Counters of a container as JSON values: the namespaces engine's reader, run in the guest."""

from __future__ import annotations

from polypod.backend import usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def read(cgroups: Any, path: str) -> dict[str, Any]:  # noqa: ANN401 - the engine's writer
    """Return the fields of `polypod.plugin.runtime.ContainerUsage`."""
    found = usage.read(cgroups, path)
    told = {name: getattr(found, name) for name in found.__slots__}
    return {name: _plain(value) for name, value in told.items()}


def _plain(value: Any) -> Any:  # noqa: ANN401 - a number, or a `Pressure`
    """Return a pressure as its two lines of four numbers."""
    if hasattr(value, "some"):
        lines = (value.some, value.full)
        return [[line.avg10, line.avg60, line.avg300, line.total_ns] for line in lines]
    return value
