"""Measure and write down: ``python -m bench [--only PART,…] [--handlers NAME,…] [--quick] [--simulator]``."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from bench import noise, report
from bench.handlers import KINDS
from bench.parts import PARTS, Sizes
from bench.rig import Rig
from bench.samples import Result
from demo.host import what_is_missing


def main() -> int:
    """Return 0 if everything that was asked for could be measured."""
    args = _arguments()
    handlers = _chosen("handler", args.handlers, KINDS)
    # Who names handlers wants to compare them.
    wanted = _chosen("part", args.only or ("handlers" if args.handlers else ""), PARTS)
    missing = [] if args.simulator else what_is_missing()
    if missing:
        sys.exit("bench: real containers cannot run here:\n  " + "\n  ".join(missing))
    sizes = replace(Sizes.quick() if args.quick else Sizes(), handlers=tuple(handlers))
    if args.pods:
        sizes = replace(sizes, pods=args.pods)
    before = noise.observe()
    rig = Rig(simulated=args.simulator)
    results: list[Result] = []
    try:
        failed = asyncio.run(_measure(rig, wanted, sizes, results))
    finally:
        clean = rig.take_down()
    host = {"before": before, "after": noise.observe(), "simulated": args.simulator}
    path = report.write(results, host, args.out)
    report.show(results, host, path)
    return int(failed or not clean)


def _chosen(kind: str, words: str, known: Iterable[str]) -> list[str]:
    """Return the names of a comma-separated list, all of them for an empty one; an unknown one ends us."""
    names = words.split(",") if words else list(known)
    unknown = sorted(set(names).difference(known))
    if unknown:
        sys.exit(f"bench: unknown {kind} {unknown[0]!r}; there are {', '.join(known)}")
    return names


_EPILOG = """\
parts of --only:
{parts}

make bench ARGS="--handlers namespaces,vm"   compares two handlers and measures nothing else
make bench ARGS="--only exec,memory --quick" a first look
"""


def _arguments() -> argparse.Namespace:
    parts = "\n".join(
        f"  {name:10} {(part.__doc__ or '').splitlines()[0]}" for name, part in PARTS.items()
    )
    parser = argparse.ArgumentParser(
        prog="make bench",
        description="Measure this host with private servers; nothing of them stays. Every value goes "
        "into bench/out/*.json, a table to the terminal. No figure is judged.",
        epilog=_EPILOG.format(parts=parts),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", metavar="PART,…", default="", help="comma-separated, see below")
    parser.add_argument(
        "--handlers",
        metavar="NAME,…",
        default="",
        help=f"compare these of {', '.join(KINDS)}; without --only, nothing else is measured",
    )
    parser.add_argument("--quick", action="store_true", help="few pods: shows that it works")
    parser.add_argument("--pods", type=int, help="pods for each latency row (default: 40)")
    parser.add_argument("--simulator", action="store_true", help="measure the daemon alone")
    parser.add_argument(
        "--out", type=Path, default=report.OUT, metavar="DIR", help="for the values"
    )
    return parser.parse_args()


async def _measure(rig: Rig, wanted: list[str], sizes: Sizes, results: list[Result]) -> bool:
    """Run the parts; one that fails is named, the others go on."""
    failed = False
    await rig.start()
    for name in wanted:
        print(f"bench: {name} …", file=sys.stderr, flush=True)
        try:
            results += await PARTS[name](rig, sizes)
        except Exception as error:  # noqa: BLE001 - the other parts are worth having
            print(f"bench: {name} failed: {error!r}\n{rig.server.log_tail()}", file=sys.stderr)
            failed = True
        await rig.pods.clear()
    return failed


if __name__ == "__main__":
    sys.exit(main())
