"""Measure beside a peer: ``python -m bench.peers [--only PART,…] [--quick]``."""

from __future__ import annotations

import argparse
import asyncio
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import count
from pathlib import Path

from bench import images, noise
from bench.peers import alone, measures, needs, pulls, table
from bench.peers.containerd_side import ContainerdSide
from bench.peers.measures import MEASURES, Sizes
from bench.peers.polypod_side import PolypodSide
from bench.peers.rows import Gathered
from bench.peers.side import BUSYBOX, PAUSE, Archives, Side
from bench.report import OUT

PARTS = (*MEASURES, "pull")


def main() -> int:
    """Return 0 if everything that was asked for could be measured, and nothing is left."""
    args = _arguments()
    wanted = args.only.split(",") if args.only else list(PARTS)
    unknown = set(wanted) - set(PARTS)
    if unknown:
        sys.exit(f"bench-peers: unknown part {sorted(unknown)[0]!r}; parts are {', '.join(PARTS)}")
    missing = needs.missing(pull="pull" in wanted)
    if missing:
        sys.exit("bench-peers: this host cannot:\n  " + "\n  ".join(missing))
    if not alone.is_inside():
        alone.enter("bench.peers", sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench-peers: ended"))
    made = alone.prepare()
    try:
        return _measure(wanted, Sizes.quick() if args.quick else Sizes(), args.out)
    finally:
        alone.restore(made=made)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-peers", description=main.__doc__)
    parser.add_argument("--only", help=f"comma-separated parts of: {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="few pods: shows that it works")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="for the values")
    return parser.parse_args()


def _measure(wanted: Sequence[str], sizes: Sizes, out: Path) -> int:
    host: dict[str, object] = {"before": noise.observe(), "versions": _versions()}
    gathered = Gathered()
    failed = asyncio.run(_parts(wanted, sizes, gathered))
    host["after"] = noise.observe()
    if rows := gathered.rows(ContainerdSide.name):
        path = table.write(rows, ContainerdSide.name, host, out)
        table.show(rows, ContainerdSide.name, host, path)
    return int(failed)


async def _parts(wanted: Sequence[str], sizes: Sizes, gathered: Gathered) -> bool:
    """Run the parts; one that fails is named, the others go on."""
    numbers = count()
    makers: list[Callable[[], Side]] = [
        lambda: PolypodSide(next(numbers)),
        lambda: ContainerdSide(next(numbers)),
    ]
    failed = False
    with_pods = [name for name in wanted if name in MEASURES]
    if with_pods:
        failed |= await _with_pods(makers, with_pods, sizes, gathered)
    if "pull" in wanted:
        print("bench-peers: pull …", file=sys.stderr, flush=True)
        try:
            await pulls.pulls(gathered, makers, sizes)
        except Exception as error:  # noqa: BLE001 - the other parts are worth having
            print(f"bench-peers: pull failed: {error!r}", file=sys.stderr)
            failed = True
    return failed


async def _with_pods(
    makers: Sequence[Callable[[], Side]], wanted: Sequence[str], sizes: Sizes, gathered: Gathered
) -> bool:
    failed = False
    sides = [make() for make in makers]
    try:
        with tempfile.TemporaryDirectory() as place:
            archives = await asyncio.to_thread(_archives, Path(place))
            for side in sides:
                await side.start(archives)
        for name in wanted:
            print(f"bench-peers: {name} …", file=sys.stderr, flush=True)
            try:
                await measures.MEASURES[name](gathered, sides, sizes)
            except Exception as error:  # noqa: BLE001 - the other parts are worth having
                tails = "\n".join(f"{side.name}: {side.log_tail()}" for side in sides)
                print(f"bench-peers: {name} failed: {error!r}\n{tails}", file=sys.stderr)
                failed = True
            for side in sides:
                await side.pods.clear()
    finally:
        clean = [await side.take_down() for side in sides]
    return failed or not all(clean)


def _archives(place: Path) -> Archives:
    return Archives(
        pause=images.write_archive(images.pause(), PAUSE, place / "pause.tar"),
        busybox=images.write_archive(images.busybox(), BUSYBOX, place / "busybox.tar"),
    )


def _versions() -> dict[str, str]:
    """Return what is compared."""

    def first_line(*words: str) -> str:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        return done.stdout.partition("\n")[0]

    return {
        "polypod": version("polypod"),
        "containerd": first_line("containerd", "--version"),
        "runc": first_line("runc", "--version"),
    }


if __name__ == "__main__":
    sys.exit(main())
