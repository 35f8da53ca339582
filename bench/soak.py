"""Pods by the thousand, each with all that a kubelet and a person do with one: ``python -m bench.soak``.

Every pod is run, executed in (ExecSync, and a streamed exec), attached to, forwarded to, stopped and removed, several
at once. It ends with an exit status of 0 if no call failed, nothing is left behind, and neither memory nor
descriptors of the server's processes grow between the first quarter and the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from bench.pods import PodMaker
from bench.processes import pss_kib
from bench.rig import Rig
from demo.host import what_is_missing
from polypod.client import CriClient, CriError, pb
from polypod.lifecycle.views import StreamChoice
from polypod.streaming import dialing

PORT: Final = 8080
GREETING: Final = b"hello from the pod"
SCRIPT: Final = (
    "while true; do $BOX nc -l -p {port} -e $BOX echo {greeting}; done & "
    "while read line; do echo got $line; done"
)
OUT: Final = StreamChoice(stdin=False, stdout=True, stderr=True, tty=False)
BOTH: Final = StreamChoice(stdin=True, stdout=True, stderr=False, tty=False)
GROWTH: Final = 0.10
"""Of the memory at the first quarter; what is above it at the end is a leak."""
GROWTH_KIB: Final = 8 * 1024
"""Below that nothing is called a leak: allocators keep pages."""
DESCRIPTORS: Final = 16
LIMIT_S: Final = 60.0
_SETTLE_S: Final = 15.0


@dataclass(slots=True)
class Sample:
    """The server's processes at one moment."""

    pods: int
    pss_kib: dict[str, int]
    descriptors: dict[str, int]


@dataclass(slots=True)
class Outcome:
    """What was seen."""

    pods: int
    parallel: int
    seconds: float = 0.0
    errors: dict[str, int] = field(default_factory=dict)
    """What was said → how often."""
    samples: list[Sample] = field(default_factory=list)
    left: dict[str, list[str]] = field(default_factory=dict)

    def complaints(self) -> list[str]:
        """Return what is wrong, a sentence each."""
        found = [f"{count} times {text}" for text, count in self.errors.items()]
        found += [
            f"left behind: {kind}: {', '.join(items[:5])}" for kind, items in self.left.items()
        ]
        return found + self._growth()

    def _growth(self) -> list[str]:
        if len(self.samples) < 3:
            return []
        early, late = self.samples[len(self.samples) // 4], self.samples[-1]
        found = []
        for role, before in early.pss_kib.items():
            more = late.pss_kib.get(role, 0) - before
            if more > max(before * GROWTH, GROWTH_KIB):
                found.append(f"{role} grew by {more} KiB, from {before}")
        for role, before in early.descriptors.items():
            more = late.descriptors.get(role, 0) - before
            if more > DESCRIPTORS:
                found.append(f"{role} has {more} descriptors more than the {before} it had")
        return found


class Soak:
    """One run against one server."""

    def __init__(self, rig: Rig, outcome: Outcome, handler: str) -> None:
        self._rig = rig
        self._outcome = outcome
        self._handler = handler
        self._done = 0
        # Asked for while nothing is launched: a child before its execve looks like its parent.
        self._pids = rig.pids()

    async def run(self) -> None:
        """Make and end all pods; nothing of a pod stops the others."""
        self._sample()
        before = residue(self._rig)
        began = time.monotonic()
        numbers = iter(range(self._outcome.pods))
        workers = (self._worker(numbers) for _ in range(self._outcome.parallel))
        await asyncio.gather(*workers)
        self._outcome.seconds = time.monotonic() - began
        await self._look_for_left(before)
        self._sample()

    async def _worker(self, numbers: Iterator[int]) -> None:
        for _ in numbers:  # one iterator, shared by all workers
            try:
                async with asyncio.timeout(LIMIT_S):
                    await self._one()
            except (CriError, dialing.Refusal, AssertionError, OSError, TimeoutError) as error:
                said = f"{type(error).__name__}: {str(error)[:200]}"
                self._outcome.errors[said] = 1 + self._outcome.errors.get(said, 0)
            self._done += 1
            if self._done % max(1, self._outcome.pods // 20) == 0:
                self._sample()
                self._tell()

    async def _one(self) -> None:
        maker, cri = self._rig.pods, self._rig.cri
        config = maker.pod_config()
        sandbox_id = await cri.run_sandbox(config, self._handler)
        try:
            container_id = await _start(maker, cri, sandbox_id, config)
            await _use(maker, cri, sandbox_id, container_id)
            await cri.stop_container(container_id, 0)
            await cri.remove_container(container_id)
        finally:
            await cri.stop_sandbox(sandbox_id)
            await cri.remove_sandbox(sandbox_id)

    def _sample(self) -> None:
        pids = self._pids
        self._outcome.samples.append(
            Sample(
                self._done,
                {role: pss_kib(pid) for role, pid in pids.items()},
                {role: len(os.listdir(f"/proc/{pid}/fd")) for role, pid in pids.items()},
            )
        )

    def _tell(self) -> None:
        last = self._outcome.samples[-1]
        memory = " ".join(f"{role}={kib // 1024}M" for role, kib in last.pss_kib.items())
        print(
            f"{self._done}/{self._outcome.pods} pods, {sum(self._outcome.errors.values())} errors, {memory}",
            file=sys.stderr,
            flush=True,
        )

    async def _look_for_left(self, before: dict[str, set[str]]) -> None:
        """What goes behind an answer gets some seconds."""
        deadline = time.monotonic() + _SETTLE_S
        while True:
            now = residue(self._rig)
            left = {
                kind: sorted(now[kind] - had) for kind, had in before.items() if now[kind] - had
            }
            if not left or time.monotonic() > deadline:
                self._outcome.left = left
                return
            await asyncio.sleep(0.1)


async def _start(
    maker: PodMaker, cri: CriClient, sandbox_id: str, config: pb.PodSandboxConfig
) -> str:
    script = SCRIPT.format(port=PORT, greeting=GREETING.decode())
    container = maker.container_config(config, maker.words("sh", "-c", script))
    container.envs.append(pb.KeyValue(key="BOX", value=maker.words("")[0].encode()))
    container.stdin = True
    container_id = await cri.create_container(sandbox_id, container, config)
    await cri.start_container(container_id)
    return container_id


async def _use(maker: PodMaker, cri: CriClient, sandbox_id: str, container_id: str) -> None:
    answer = await cri.exec_sync(container_id, maker.words("echo", "sync"), 30)
    assert answer.stdout == b"sync\n", f"ExecSync answered {answer.stdout!r}"
    url = await cri.exec_url(
        container_id, maker.words("echo", "streamed"), stdout=True, stderr=True
    )
    async with dialing.command(url, OUT) as remote:
        said = await remote.output()
        assert said == (b"streamed\n", b"", 0), f"exec answered {said!r}"
    url = await cri.attach_url(container_id, stdin=True, stdout=True)
    async with dialing.command(url, BOTH) as remote:
        await remote.write(b"line\n")
        got = b""
        while not got.endswith(b"got line\n"):
            data = await remote.channels["stdout"].inbox.get()
            assert data, f"attach ended after {got!r}"
            got += data
    await _forwarded(cri, sandbox_id)


async def _forwarded(cri: CriClient, sandbox_id: str) -> None:
    url = await cri.forward_url(sandbox_id, [PORT])
    got = b""
    async with dialing.forward(url) as client:
        for _ in range(100):  # it may not listen yet
            data, error = await client.connect(PORT)
            got = await data.inbox.get()
            if got:
                break
            await error.inbox.get()
            await asyncio.sleep(0.05)
        assert got.strip() == GREETING, f"port-forward answered {got!r}"


def residue(rig: Rig) -> dict[str, set[str]]:
    """Return what exists on the host because of pods: links, cgroups, mounts, files named by ids, processes."""
    place, parent = str(rig.server.place), rig.server.cgroup_parent.strip("/")
    mounts = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    groups: set[str] = set()
    for hierarchy in Path("/sys/fs/cgroup").iterdir():
        if hierarchy.is_dir() and not hierarchy.is_symlink():
            groups |= {str(each) for each in (hierarchy / parent).glob("*") if each.is_dir()}
    state = rig.server.state
    return {
        "links": {each for each in os.listdir("/sys/class/net") if each.startswith("pv")},
        "cgroups": groups,
        "mounts": {each for each in mounts if each.startswith(place)},
        "files": {
            str(each)
            for kind in ("sandboxes", "containers", "bundles")
            for each in state.rglob(f"{kind}/*")
        },
    }


def main() -> int:
    """Return 0 if nothing is to complain about."""
    args = _arguments()
    missing = what_is_missing()
    if missing:
        sys.exit("soak: real containers cannot run here:\n  " + "\n  ".join(missing))
    outcome = Outcome(args.pods, args.parallel)
    settings = (f"handlers.{args.handler}.type={args.type or args.handler}",)
    rig = Rig(simulated=False, name="soak", settings=settings)
    try:
        asyncio.run(_soak(rig, outcome, args.handler))
    finally:
        clean = rig.take_down()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "soak.json").write_text(json.dumps(asdict(outcome), indent=1))
    complaints = outcome.complaints() + ([] if clean else ["polypod down left something"])
    _report(outcome, complaints)
    return int(bool(complaints))


async def _soak(rig: Rig, outcome: Outcome, handler: str) -> None:
    await rig.start()
    warm = Soak(rig, Outcome(8, 4), handler)
    await warm.run()  # what a server makes once
    await Soak(rig, outcome, handler).run()


def _report(outcome: Outcome, complaints: list[str]) -> None:
    first, last = outcome.samples[0], outcome.samples[-1]
    print(f"{outcome.pods} pods, {outcome.parallel} at once, in {outcome.seconds:.0f} s")
    for role, before in first.pss_kib.items():
        print(
            f"  {role:<11} {before / 1024:6.1f} → {last.pss_kib.get(role, 0) / 1024:6.1f} MiB, "
            f"{first.descriptors[role]} → {last.descriptors.get(role, 0)} descriptors"
        )
    for each in complaints:
        print(f"  WRONG: {each}")
    print("  nothing to complain about" if not complaints else f"  {len(complaints)} complaints")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pods", type=int, default=2000, help="how many (default: %(default)s)")
    parser.add_argument("--parallel", type=int, default=8, help="at once (default: %(default)s)")
    parser.add_argument("--handler", default="namespaces", help="default: %(default)s")
    parser.add_argument("--type", default="", help="the handler's type, if it is called otherwise")
    parser.add_argument(
        "--out", type=Path, default=Path("bench/out"), help="where soak.json is written"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
