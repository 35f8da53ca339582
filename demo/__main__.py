"""Run the demonstration: ``python -m demo [--simulator] [--keep]``."""

from __future__ import annotations

import argparse
import asyncio
import sys

from demo.host import what_is_missing
from demo.server import OwnServer
from demo.steps import Steps
from demo.story import tell


def main() -> int:
    """Return 0 if every step went well."""
    parser = argparse.ArgumentParser(prog="make demo", description=main.__doc__)
    parser.add_argument("--simulator", action="store_true", help="simulate, even as root")
    args = parser.parse_args()
    missing = ["--simulator was given"] if args.simulator else what_is_missing()
    for reason in missing:
        print(f"  not here: {reason}")
    if missing:
        print(
            "so the story is told on the simulator: no container is isolated, no packet is sent\n"
        )
    steps = Steps()
    server = OwnServer("demo", simulated=bool(missing))
    try:
        with steps.step("start a server on a private socket"):
            server.start()
            asyncio.run(server.ready())
        asyncio.run(tell(server, steps))
    except Exception as error:  # noqa: BLE001 - a demonstration ends with a sentence, not a traceback
        print(f"the demo failed: {error}", file=sys.stderr)
        print(server.log_tail(), file=sys.stderr)
        steps.failed = True
    finally:
        with steps.step("take everything down"):
            steps.failed |= not server.take_down()
    steps.summary()
    return int(steps.failed)


if __name__ == "__main__":
    sys.exit(main())
