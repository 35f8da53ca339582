"""Who we are and how much we may use."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from polypod.doctor.row import Row, State

NEEDED = {"SYS_ADMIN": 21, "NET_ADMIN": 12, "SYS_CHROOT": 18, "SETUID": 7, "SETGID": 6, "MKNOD": 27}
NEEDED |= {"CHOWN": 0, "DAC_OVERRIDE": 1, "KILL": 5, "SETPCAP": 8, "FOWNER": 3, "SYS_PTRACE": 19}
USEFUL = {"SYS_RESOURCE": 24}
DESCRIPTORS_PER_POD = 20
MANY_PODS = 250
"""As many as a kubelet runs at most without being told otherwise, and some more."""


def root() -> Row:
    """Namespaces, mounts and links are made as root."""
    uid = os.geteuid()
    if uid == 0:
        return Row("root", State.OK, "uid 0")
    remedy = f"uid {uid}: run as root; the simulator runs without (handlers.sim.type=simulator)"
    return Row("root", State.MISSING, remedy)


def capabilities(status: Path = Path("/proc/self/status")) -> Row:
    """Containers, VMs and nested hosts take some away."""
    fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
    held = int(fields["CapEff"], 16)
    bounding = int(fields["CapBnd"], 16)
    lacking = [name for name, bit in NEEDED.items() if not held >> bit & 1]
    if lacking:
        why = (
            "start us with them"
            if all(bounding >> NEEDED[n] & 1 for n in lacking)
            else (
                "they are not in the bounding set: whoever started this host's programs dropped them"
            )
        )
        return Row("capabilities", State.MISSING, f"without CAP_{', CAP_'.join(lacking)}: {why}")
    if not held >> USEFUL["SYS_RESOURCE"] & 1:
        return Row(
            "capabilities",
            State.LIMITED,
            "CAP_SYS_RESOURCE is missing: oom_score_adj cannot be lowered, hard rlimits cannot be "
            "raised; such requests are refused, defaults are left out",
        )
    return Row("capabilities", State.OK, "all that we use")


def descriptors(limits: tuple[int, int] | None = None) -> Row:
    """Each pod costs the daemon and the keeper some twenty."""
    _soft, hard = limits or resource.getrlimit(resource.RLIMIT_NOFILE)
    pods = hard // DESCRIPTORS_PER_POD
    text = f"hard limit {hard}: some {pods} pods"
    if hard == resource.RLIM_INFINITY or pods >= MANY_PODS:
        return Row("descriptors", State.OK, text)
    return Row("descriptors", State.LIMITED, f"{text}; raise LimitNOFILE / ulimit -Hn")
