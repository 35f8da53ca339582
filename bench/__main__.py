"""Measure and write down: ``python -m bench [--only PART,…] [--quick] [--pods N] [--simulator]``."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from bench import noise, report
from bench.parts import PARTS, Sizes
from bench.rig import Rig
from bench.samples import Result
from demo.host import what_is_missing


def main() -> int:
    """Return 0 if everything that was asked for could be measured."""
    args = _arguments()
    wanted = args.only.split(",") if args.only else list(PARTS)
    unknown = set(wanted) - set(PARTS)
    if unknown:
        sys.exit(f"bench: unknown part {sorted(unknown)[0]!r}; parts are {', '.join(PARTS)}")
    missing = [] if args.simulator else what_is_missing()
    if missing:
        sys.exit("bench: real containers cannot run here:\n  " + "\n  ".join(missing))
    sizes = Sizes.quick() if args.quick else Sizes()
    if args.pods:
        sizes = Sizes(pods=args.pods, execs=sizes.execs, crowd=sizes.crowd, log_mb=sizes.log_mb)
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


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=main.__doc__)
    parser.add_argument("--only", help=f"comma-separated parts of: {', '.join(PARTS)}")
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
