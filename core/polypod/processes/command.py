"""The command line of the keeper, written down once more for the daemon.

The daemon never imports ``polypod.supervisor``: that room is executed. A unit test holds this line and
``polypod.supervisor.start.command`` together.
"""

from __future__ import annotations

import sys
from pathlib import Path

_CODE = (
    "import sys; sys.path.insert(0, sys.argv[1]);"
    " from polypod.supervisor.__main__ import main; main(sys.argv[2:])"
)


def keeper(state: Path) -> list[str]:
    """Return how the keeper is executed."""
    root = Path(__file__).resolve().parents[2]
    python = getattr(sys, "_base_executable", "") or sys.executable
    return [python, "-I", "-S", "-E", "-c", _CODE, str(root), "keeper", str(state)]
