"""A mount and a network namespace for the whole comparison: nothing of either side stays on the host.

Bridges, addresses, firewall rules and whatever the peers put below /run and /var/lib/cni go with the namespaces,
also when the bench is killed. Processes and cgroups do not: the sides remove theirs.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

_INSIDE: Final = "POLYPOD_BENCH_ALONE"
_SIOCGIFFLAGS: Final = 0x8913  # linux/sockios.h
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
RESULTS: Final = Path("/var/lib/cni")
"""Where the CNI library keeps results, whatever is configured."""


def is_inside() -> bool:
    """Tell whether this process was started by `enter`."""
    return os.environ.get(_INSIDE) == str(os.getpid())


def enter(module: str, arguments: Sequence[str]) -> NoReturn:
    """Execute a module of ours again, inside."""
    os.environ[_INSIDE] = str(os.getpid())  # unshare(1) executes: the pid stays
    namespaces = ("--mount", "--net", "--propagation", "private")
    os.execvp("unshare", ["unshare", *namespaces, sys.executable, "-m", module, *arguments])


def prepare() -> bool:
    """Make the loopback and the private directories; tell whether `RESULTS` had to be made."""
    _loopback_up()
    made = not RESULTS.exists()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for place in ("/run", str(RESULTS)):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "bench", place], check=True)
    return made


def restore(*, made: bool) -> None:
    """Take away the one directory that outlives the namespaces."""
    # Whoever removed the directory outside has unmounted it here.
    subprocess.run(["umount", "--lazy", str(RESULTS)], check=False)
    if made:
        with suppress(OSError):
            RESULTS.rmdir()


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        request = struct.pack("16sh14x", b"lo", 0)
        answer = fcntl.ioctl(channel, _SIOCGIFFLAGS, request)
        flags = struct.unpack("16sh14x", answer)[1]
        fcntl.ioctl(channel, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))
