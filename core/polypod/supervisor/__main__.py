"""The entry point of the processes beside the daemon: ``keeper | supervisor | logger STATE``."""

from __future__ import annotations

import resource
import sys


def main(arguments: list[str]) -> None:
    """Become one of the processes; returns when it is asked to end."""
    role, state, *options = arguments
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if role == "keeper":
        from polypod.supervisor import keeper

        keeper.main(state)
    elif role == "supervisor":
        from polypod.supervisor import inside

        inside.main(state, inside="--inside" in options)
    elif role == "logger":
        from polypod.supervisor import logger

        logger.main(state)
    else:
        sys.exit(f"polypod.supervisor: no role {role!r}: keeper, supervisor or logger")


if __name__ == "__main__":
    main(sys.argv[1:])
