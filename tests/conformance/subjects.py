"""The runtime handlers that the suite runs on, what each declares, and how a test says what it needs.

Without anything said these are the simulator and our own namespaces engine: what ``make test`` runs.
``make conformance`` runs the suite on each handler of `BUILT_IN`, by naming one at a time::

    POLYPOD_CONFORMANCE_HANDLERS=runc pytest tests/conformance

A plugin author runs it on his own by naming a configuration of polypod::

    POLYPOD_CONFORMANCE_CONFIG=/path/config.toml pytest tests/conformance

What a handler declares is read from the verbose Status of a server that has it: features of its own,
which may be fewer than its type's, optional Protocols, exceptions from the contract. A test that needs
what is not declared is skipped, and its reason begins with `DECLARED`.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from support.server import Server

from polypod.client import CriClient
from polypod.config import HandlerConfig, load
from polypod.plugin.runtime import Feature

SIMULATOR = "simulator"
CONFIG = os.environ.get("POLYPOD_CONFORMANCE_CONFIG", "")
HANDLERS = os.environ.get("POLYPOD_CONFORMANCE_HANDLERS", "")

DECLARED = "declared: "
"""Begins the reason of a skip where the handler's descriptor says that it cannot do this."""
HOST = "host: "
"""Where this host lacks what the test takes."""
CONVERSE = "converse: "
"""Where the test is about the refusal of something, and this handler (or host) offers it."""
ONCE = "once: "
"""Where the test is of the server alone, and running it on one handler is enough."""

BUILT_IN: Mapping[str, HandlerConfig] = {
    "sim": HandlerConfig(type=SIMULATOR),
    "namespaces": HandlerConfig(type="namespaces"),
    "runc": HandlerConfig(type="oci", options={"path": "runc"}),
    "crun": HandlerConfig(type="oci", options={"path": "crun"}),
    "vm": HandlerConfig(type="vm"),
}
"""Handlers that can be named without a configuration."""
DEFAULT = ("sim", "namespaces")
REFUSED: Mapping[str, str] = {
    "fly": "its pods are not isolated: tests that write kernel files, limits and host names, or that kill "
    "what they find, would do so to this host"
}
"""Types on which the suite never runs → why."""
PROTOCOLS: Mapping[str, str] = {"UpdatePodSandboxResources": "Resizable"}
"""Call of CRI → the optional Protocol of a backend without which it is refused."""


@dataclass(frozen=True)
class Subject:
    """One runtime handler to test."""

    name: str
    """Of the handler."""
    type: str
    settings: tuple[str, ...] = ()
    """For ``--set``; the handler itself stands in ``config`` or here."""
    config: Path | None = None
    features: frozenset[str] = frozenset()
    """`Feature`s that the opened handler has."""
    protocols: frozenset[str] = frozenset()
    """Names of the optional Protocols that its backend implements."""
    exceptions: Mapping[str, str] = field(default_factory=dict)
    """Check of the contract that its type does not pass by design → why."""
    networked: bool = True
    """Whether its pods get addresses from core: always on the simulator, whose network is simulated."""
    on_this_kernel: bool = True
    """Whether core makes its pods' pid namespaces, so that their programs are processes of this host."""
    unusable: str = ""
    """Why this host cannot run it."""

    @property
    def simulated(self) -> bool:
        """Its programs are simulated: they print, sleep and exit, in no kernel at all."""
        return self.type == SIMULATOR

    @property
    def programs(self) -> dict[str, list[str]]:
        """What images cannot settle: how a program runs out of memory, burns cpu, takes memory."""
        return SIMULATED if self.simulated else REAL

    def declared(self) -> dict[str, object]:
        """Return what the handler declares, for the report."""
        return {
            "type": self.type,
            "features": sorted(self.features),
            "protocols": sorted(self.protocols),
            "exceptions": dict(self.exceptions),
            "unusable": self.unusable,
        }

    def needs(self, *features: Feature) -> None:
        """Skip the test unless the handler has all of them."""
        for feature in features:
            if feature not in self.features:
                self._declared(f"does not offer {feature}")

    def needs_protocol(self, name: str) -> None:
        """Skip the test unless the backend implements an optional Protocol of `polypod.plugin.runtime`."""
        if name not in self.protocols:
            self._declared(f"does not implement {name}")

    def can(self, call: str) -> bool:
        """Tell whether the backend implements the Protocol that a call of CRI takes, if it takes one."""
        return call not in PROTOCOLS or PROTOCOLS[call] in self.protocols

    def needs_check(self, name: str) -> None:
        """Skip the test if the type declares that it does not pass this check of the contract."""
        if name in self.exceptions:
            self._declared(f"excepts {name}: {self.exceptions[name]}")

    def needs_kernel(self) -> None:
        """Skip the test unless programs are real."""
        if self.simulated:
            self._declared("simulates programs: there is no kernel, file or network to look at")

    def needs_network(self) -> None:
        """Skip the test unless pods have a network namespace of core's making."""
        if not self.networked:
            self._declared("has no network namespace of core's making")

    def needs_this_kernel(self) -> None:
        """Skip the test unless programs run in the host's kernel: core makes their namespaces there."""
        self.needs_kernel()
        if not self.on_this_kernel:
            self._declared(
                "runs programs in a kernel of their own, which the host cannot look into"
            )

    def lacks(self, feature: Feature) -> None:
        """Skip a test of the refusal of something that this handler offers."""
        if feature in self.features:
            pytest.skip(f"{CONVERSE}handler {self.name} offers {feature}, so it is not refused")

    def lacks_protocol(self, name: str) -> None:
        """Skip a test of the refusal of calls that this handler's backend implements."""
        if name in self.protocols:
            pytest.skip(f"{CONVERSE}handler {self.name} implements {name}, so it is not refused")

    def _declared(self, what: str) -> None:
        pytest.skip(f"{DECLARED}handler {self.name} (type {self.type}) {what}")


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


def host_lacks(what: str) -> None:
    """Skip the test: the host cannot do what it takes."""
    pytest.skip(f"{HOST}{what}")


def host_offers(what: str) -> None:
    """Skip a test of the refusal of something that this host offers."""
    pytest.skip(f"{CONVERSE}this host has {what}, so it is not refused")


def subjects() -> list[Any]:
    """Return the parameters of the fixture ``handler``."""
    known = dict(load(Path(CONFIG)).handlers) if CONFIG else dict(BUILT_IN)
    names = HANDLERS.split() or (list(known) if CONFIG else DEFAULT)
    return [_param(_subject(name, known)) for name in names]


def _subject(name: str, known: Mapping[str, HandlerConfig]) -> Subject:
    if name in REFUSED or (name in known and known[name].type in REFUSED):
        reason = REFUSED.get(name) or REFUSED[known[name].type]
        raise pytest.UsageError(f"the suite does not run on handler {name}: {reason}")
    if name not in known:
        raise pytest.UsageError(f"no handler {name!r}; there are {', '.join(known)}")
    config = Path(CONFIG) if CONFIG else None
    return Subject(name, known[name].type, _settings(name, known[name]), config)


def _settings(name: str, handler: HandlerConfig) -> tuple[str, ...]:
    default = f"server.default_handler={name}"
    if CONFIG:
        return (default,)
    options = [f"handlers.{name}.options.{key}={value}" for key, value in handler.options.items()]
    return (f"handlers.{name}.type={handler.type}", *options, default)


def _param(subject: Subject) -> Any:
    return pytest.param(subject, id=subject.name, marks=[] if subject.simulated else _MARKS)


def with_facts(subject: Subject) -> Subject:
    """Return a subject with what a server says of it; asked once for each."""
    facts = facts_of(subject.name, subject.settings, subject.config)
    return replace(
        subject,
        features=frozenset(facts.get("features", ())),
        protocols=frozenset(facts.get("protocols", ())),
        exceptions=facts.get("exceptions", {}),
        networked=subject.simulated or "network" in facts.get("sandboxNamespaces", ()),
        on_this_kernel="pid" in facts.get("sandboxNamespaces", ()),
        unusable=facts.get("unusable", ""),
    )


@cache
def facts_of(name: str, settings: Sequence[str], config: Path | None) -> dict[str, Any]:
    """Start a server with a handler and return what its verbose Status tells of that handler."""
    server = Server(settings, config=config)
    try:
        server.start()
        info = asyncio.run(_status(server.endpoint))
    finally:
        server.take_down()
    facts: dict[str, Any] = info["handlers"][name]
    return facts


async def _status(endpoint: str) -> dict[str, Any]:
    async with CriClient(endpoint) as cri:
        answer = await cri.status(verbose=True)
    found: dict[str, Any] = json.loads(answer.info["info"])
    return found
