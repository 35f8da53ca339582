"""Checkpoints of simulated containers: the state of a program between two of its commands, as one JSON file.

A script's way is decided by the exit statuses of its commands alone. So these are what is kept: restored, the
shell walks the same way with the kept statuses, runs nothing twice, takes the kept environment, and goes
on with the command that ran when it was captured.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from polypod.plugin.errors import FailedPrecondition, InvalidArgument
from polypod.testing.process import Captured
from polypod.testing.world import SimContainer

FILE = "simulated.json"
_BYTES = 64 << 20


def write(container: SimContainer, directory: Path) -> None:
    """Write a container down.

    Raises:
        FailedPrecondition: it does not run, or has processes in the background.
    """
    main = container.main
    if main is None or main.status is not None:
        raise FailedPrecondition(
            f"container {container.id} does not run: there is nothing to capture"
        )
    if len(main.group.processes) > 1:
        raise FailedPrecondition(
            f"container {container.id} has {len(main.group.processes)} processes: the simulator can "
            "capture one that is alone"
        )
    found = main.captured or main.capture()
    facts = {
        "args": list(main.start.args),
        "journal": base64.b64encode(found.journal).decode(),
        "env": dict(found.env),
        "cwd": found.cwd,
        "traps": [[number, action] for number, action in found.traps.items()],
        "memory_bytes": found.memory_bytes,
        "cpu_ns": found.cpu_ns,
    }
    (directory / FILE).write_text(json.dumps(facts))


def read(directory: Path, args: tuple[str, ...]) -> Captured:
    """Return what was written of a container with these arguments.

    Raises:
        InvalidArgument: no checkpoint of ours, or of another program.
    """
    try:
        path = directory / FILE
        if path.stat().st_size > _BYTES:
            raise InvalidArgument(f"the checkpoint's {FILE} is too large")
        facts = json.loads(path.read_text())
        return _captured(facts, args)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidArgument(f"the checkpoint's {FILE} is damaged: {error!r}") from error


def _captured(facts: dict[str, Any], args: tuple[str, ...]) -> Captured:
    if tuple(facts["args"]) != args:
        raise InvalidArgument(
            f"the checkpoint is of {list(facts['args'])!r}, the request runs {list(args)!r}"
        )
    return Captured(
        journal=base64.b64decode(facts["journal"], validate=True),
        env={str(name): str(value) for name, value in facts["env"].items()},
        cwd=str(facts["cwd"]),
        traps={int(number): str(action) for number, action in facts["traps"]},
        memory_bytes=max(0, int(facts["memory_bytes"])),
        cpu_ns=max(0, int(facts["cpu_ns"])),
    )
