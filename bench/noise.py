"""How busy and how even this host is: figures without that mean little."""

from __future__ import annotations

import os
import platform
import time
from datetime import UTC, datetime
from pathlib import Path

_ROUNDS = 30
_LOOP = 50_000


def observe() -> dict[str, object]:
    """Return load, stolen time, and how much a fixed piece of work varies (median/min, max/min)."""
    took = sorted(_fixed_work() for _ in range(_ROUNDS))
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "loadavg": os.getloadavg(),
        "steal_ticks": _steal_ticks(),
        "fixed_work_ms": round(took[0] * 1e3, 3),
        "noise_median": round(took[_ROUNDS // 2] / took[0], 3),
        "noise_max": round(took[-1] / took[0], 3),
    }


def busy_s() -> float:
    """Return the processor time that everything on this host took since it started, in seconds."""
    fields = [int(text) for text in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, _steal = fields
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _fixed_work() -> float:
    began = time.perf_counter()
    total = 0
    for number in range(_LOOP):
        total += number
    return time.perf_counter() - began


def _steal_ticks() -> int:
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return int(fields[8]) if len(fields) > 8 else 0
