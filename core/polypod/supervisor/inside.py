"""How the supervisor comes to live in its trimmed mount namespace: executed twice.

The first time it opens, outside, what must be open: its socket, the state directory, the host's mount
namespace. Then it builds the namespace, moves in and executes itself again, so that every page and
every descriptor of the interpreter leads to the read-only mounts in there (E1).
"""

from __future__ import annotations

import gc
import json
import os
import socket

from polypod.plan import channel
from polypod.supervisor import journal, start, trim
from polypod.supervisor.kernel import process
from polypod.supervisor.presence import Presence
from polypod.supervisor.supervisor import Supervisor

_VARIABLE = "POLYPOD_DESCRIPTORS"


def main(state: str, *, inside: bool) -> None:
    """Become the supervisor."""
    process.set_name("polypod-superv")
    if inside:
        numbers = json.loads(os.environ.pop(_VARIABLE))
    else:
        numbers = _open_all(state)
        journal.use("supervisor", numbers["state"])
        if trim.can_trim():
            _execute_inside(state, numbers)
    for fd in numbers.values():
        if fd >= 0:
            os.set_inheritable(fd, False)
    journal.use("supervisor", numbers["state"])
    process.set_not_dumpable()
    presence = Presence(numbers["presence"])
    gc.freeze()
    supervisor = Supervisor(state, numbers["state"], numbers["mounts"], presence)
    supervisor.run(socket.socket(fileno=numbers["listener"]))


def _open_all(state: str) -> dict[str, int]:
    presence = Presence.open(state)
    # One that hands over is just leaving.
    presence.take("supervisor", wait=True)
    listener = channel.listen(os.path.join(state, "supervisor.sock"))
    mounts = -1
    if trim.can_trim():
        mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    return {
        "presence": presence.fd,
        "listener": listener.detach(),
        "state": os.open(state, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC),
        "mounts": mounts,
    }


def _execute_inside(state: str, numbers: dict[str, int]) -> None:
    trim.enter()
    for fd in numbers.values():
        os.set_inheritable(fd, True)
    arguments = start.command("supervisor", state, "--inside")
    os.execve(arguments[0], arguments, {_VARIABLE: json.dumps(numbers)})
