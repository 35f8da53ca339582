"""The same pod on every usable handler of this host, in turns: what each kind of isolation costs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.rig import Rig
from bench.samples import Result, result
from polypod.client import CriError

KINDS = {
    "namespaces": ("type=namespaces",),
    "runc": ("type=oci", "options.path=runc"),
    "crun": ("type=oci", "options.path=crun"),
    "fly": ("type=fly",),
    "vm": ("type=vm",),
}
"""Handler → its section of the configuration."""
SLOW = frozenset({"vm"})
"""Handlers whose pods take seconds: they take part in the first rounds alone."""
SUBNETS = ("10.234.16.0/20", "fd00:10:234:16::/64")

SETTLE_S = 0.2
"""What follows an answer, such as a link that is torn down, counts with the pod that it belonged to."""


@dataclass(frozen=True, slots=True)
class Turns:
    """How much is measured of each handler."""

    rounds: int = 10
    pods: int = 4
    """One after the other in each round; of a slow handler one."""
    slow_rounds: int = 3
    execs: int = 10
    """Of the last pod in each round."""


@dataclass(slots=True)
class Taken:
    """The values of one handler."""

    ready_ms: list[float] = field(default_factory=list)
    gone_ms: list[float] = field(default_factory=list)
    exec_ms: list[float] = field(default_factory=list)
    server_ms: list[float] = field(default_factory=list)
    """Processor time of the server and of what it executed (runtimes, QEMU), for one pod."""
    pods_ms: list[float] = field(default_factory=list)
    """Processor time in the pods' own cgroups, for one pod."""

    def rows(self, handler: str) -> list[Result]:
        """Return a row for each measure."""
        cpu_ms = [ours + theirs for ours, theirs in zip(self.server_ms, self.pods_ms, strict=True)]
        in_pods_ms = sum(self.pods_ms) / len(self.pods_ms)
        return [
            result(f"{handler}: pod_ready", "ms", self.ready_ms),
            result(f"{handler}: stop and remove", "ms", self.gone_ms),
            result(f"{handler}: ExecSync(true)", "ms", self.exec_ms),
            result(f"{handler}: CPU per pod cycle", "ms", cpu_ms, in_pods_ms=in_pods_ms),
        ]


async def measure(turns: Turns, wanted: Sequence[str]) -> list[Result]:
    """Measure on a server of its own that has all these handlers.

    Raises:
        RuntimeError: none of them is usable, or something was left.
    """
    rig = Rig(simulated=False, name="bench-handlers", subnets=SUBNETS, settings=settings_of(wanted))
    try:
        await rig.start()
        usable = [each for each in wanted if await _works(rig, each)]
        if not usable:
            raise RuntimeError(f"no usable handler among {', '.join(wanted)}")
        taken = await _in_turns(rig, turns, usable)
    finally:
        if rig.started:
            await rig.pods.clear()
        clean = rig.take_down()
    if not clean:
        raise RuntimeError("the server of the handlers left something")
    rows = [taken[each].rows(each) for each in usable]
    return [row for measure in zip(*rows, strict=True) for row in measure]


def settings_of(wanted: Sequence[str]) -> list[str]:
    """Return the words for ``--set`` that configure these handlers; the first is the default."""
    words = [f"handlers.{each}.{word}" for each in wanted for word in KINDS[each]]
    return [*words, f"server.default_handler={wanted[0]}"]


def order(usable: Sequence[str], number: int, turns: Turns) -> list[str]:
    """Return who takes part in a round, each time beginning with another one."""
    shift = number % len(usable)
    turned = [*usable[shift:], *usable[:shift]]
    return [each for each in turned if each not in SLOW or number < turns.slow_rounds]


async def _works(rig: Rig, handler: str) -> bool:
    """Run a first pod, which makes what is made once; say why if that is refused."""
    try:
        pod, _ms = await rig.pods.ready(handler=handler, limited=False)
        await rig.pods.exec_true(pod)
        await rig.pods.gone(pod)
    except CriError as error:
        print(f"bench: handler {handler} is unusable here: {error.text}", file=sys.stderr)
        return False
    return True


async def _in_turns(rig: Rig, turns: Turns, usable: Sequence[str]) -> dict[str, Taken]:
    taken = {each: Taken() for each in usable}
    for number in range(turns.rounds):
        for handler in order(usable, number, turns):
            await _turn(rig, handler, turns, taken[handler])
    return taken


async def _turn(rig: Rig, handler: str, turns: Turns, taken: Taken) -> None:
    """Run pods of one handler one after the other; the last one is also executed in."""
    count = 1 if handler in SLOW else turns.pods
    for number in range(count):
        server_s, pods_s = rig.cpu_s(), rig.pods_cpu_s()
        pod, ready_ms = await rig.pods.ready(handler=handler, limited=False)
        server_s, pods_s = rig.cpu_s() - server_s, rig.pods_cpu_s() - pods_s
        if number == count - 1:
            taken.exec_ms += [await rig.pods.exec_true(pod) for _ in range(turns.execs)]
        before = rig.cpu_s(), rig.pods_cpu_s()
        taken.gone_ms.append(await rig.pods.gone(pod))
        await asyncio.sleep(SETTLE_S)
        taken.ready_ms.append(ready_ms)
        taken.server_ms.append((server_s + rig.cpu_s() - before[0]) * 1e3)
        taken.pods_ms.append((pods_s + rig.pods_cpu_s() - before[1]) * 1e3)
