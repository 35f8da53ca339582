"""The runtime handlers that the suite runs on, and what each can be asked for.

Without anything said these are the simulator and our own namespaces engine. A plugin author runs the
suite on his by naming a configuration of polypod::

    POLYPOD_CONFORMANCE_CONFIG=/path/config.toml pytest tests/conformance

Then every handler of that file is tested, each with the image store that the file gives it. What a
handler's type does not declare (`polypod.plugin.Feature`) is skipped with that reason.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from polypod.config import Config, HandlerConfig, load
from polypod.plugin.runtime import Feature
from polypod.registry import Registry

SIMULATOR = "simulator"
CONFIG = os.environ.get("POLYPOD_CONFORMANCE_CONFIG", "")


@dataclass(frozen=True)
class Subject:
    """One runtime handler to test."""

    name: str
    """Of the handler."""
    type: str
    features: frozenset[Feature]
    settings: tuple[str, ...] = ()
    """For ``--set``; the handler itself stands in ``config`` or here."""
    config: Path | None = None
    networked: bool = True
    """Whether its pods get addresses from core: always on the simulator, whose network is simulated."""
    programs: dict[str, list[str]] = field(default_factory=dict)
    """What images cannot settle: how a program runs out of memory, burns cpu, or keeps 20 MB."""

    @property
    def simulated(self) -> bool:
        """Its programs are simulated: they print, sleep and exit, in no kernel at all."""
        return self.type == SIMULATOR

    def needs(self, *features: Feature) -> None:
        """Skip the test unless the handler declares all of them."""
        for feature in features:
            if feature not in self.features:
                pytest.skip(f"handler {self.name} (type {self.type}) does not offer {feature}")

    def needs_kernel(self) -> None:
        """Skip the test unless programs are real."""
        if self.simulated:
            pytest.skip("simulated programs have no kernel, files or network to look at")


REAL = {
    "out_of_memory": ["sh", "-c", "tail /dev/zero"],
    "busy": ["sh", "-c", "while true; do :; done"],
    "resident": [
        "sh",
        "-c",
        "x=$(head -c 20000000 /dev/zero | tr '\\0' x); echo resident; sleep 1000; echo ${#x}",
    ],
}
SIMULATED = {
    "out_of_memory": ["sh", "-c", "eat 100000000; sleep inf"],
    "busy": ["spin"],
    "resident": ["sh", "-c", "eat 20000000; echo resident; sleep inf"],
}
_MARKS = [pytest.mark.needs_root, pytest.mark.needs_overlay, pytest.mark.needs_busybox]


def subjects() -> list[object]:
    """Return the parameters of the fixture ``handler``."""
    if CONFIG:
        config = load(Path(CONFIG))
        return [_param(_subject(name, each, config)) for name, each in config.handlers.items()]
    simulator = ("handlers.sim.type=simulator", "server.default_handler=sim")
    return [
        _param(_subject("sim", HandlerConfig(type=SIMULATOR), None, simulator)),
        _param(_subject("namespaces", HandlerConfig(type="namespaces"), None)),
    ]


def _subject(
    name: str, handler: HandlerConfig, config: Config | None, settings: tuple[str, ...] = ()
) -> Subject:
    offered = Registry.load().runtime_type(handler.type)
    simulated = handler.type == SIMULATOR
    return Subject(
        name=name,
        type=handler.type,
        features=offered.features,
        settings=(*settings, f"server.default_handler={name}"),
        config=Path(CONFIG) if config is not None else None,
        networked=simulated or "network" in offered.sandbox_namespaces,
        programs=SIMULATED if simulated else REAL,
    )


def _param(subject: Subject) -> object:
    marks = [] if subject.simulated else _MARKS
    return pytest.param(subject, id=subject.name, marks=marks)
