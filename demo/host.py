"""What this host lacks for the real story."""

from __future__ import annotations

import shutil

from polypod.config import Config
from polypod.doctor import missing
from polypod.registry import overview

NEEDED = {("runtime type", "namespaces"), ("image store", "content"), ("network", "bridge")}


def what_is_missing() -> list[str]:
    """Return reasons, one sentence each; an empty list means that real containers can run."""
    reasons = missing()
    if shutil.which("busybox") is None:
        reasons.append("busybox, of which the image is made: apt-get install busybox-static")
    found = {(kind, name): state for _plugin, kind, name, state in overview(Config())}
    for kind, name in sorted(NEEDED):
        state = found.get((kind, name), "no plugin offers it")
        if state != "usable":
            reasons.append(f"{kind} {name!r}: {state}")
    return reasons
