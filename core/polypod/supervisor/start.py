"""How the processes are executed: one command line, one place.

``-I -S -E`` keeps site packages and the environment out: the child side starts in some 20 ms and
nothing that a user installs can change it.
"""

from __future__ import annotations

import os
import sys

_CODE = (
    "import sys; sys.path.insert(0, sys.argv[1]);"
    " from polypod.supervisor.__main__ import main; main(sys.argv[2:])"
)


def code_root() -> str:
    """Return the directory that holds the package ``polypod``."""
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def command(role: str, state: str, *options: str) -> list[str]:
    """Return the command line of keeper, supervisor or logger."""
    python = getattr(sys, "_base_executable", "") or sys.executable
    return [python, "-I", "-S", "-E", "-c", _CODE, code_root(), role, state, *options]


def child(role: str, state: str, *options: str) -> int:
    """Execute a role as our child and return its pid; only for single-threaded callers."""
    arguments = command(role, state, *options)
    pid = os.fork()
    if pid:
        return pid
    try:
        os.execv(arguments[0], arguments)
    finally:
        os._exit(127)
