"""What a runtime said when it failed: the last lines of its log, in the words of an error.

Spec:
    runc(8), ``--log-format json``: one object a line with ``level``, ``msg``, ``time``.
"""

from __future__ import annotations

import json
from typing import Final

_LINES: Final = 3
_BYTES: Final = 2000
_QUIET: Final = frozenset(["debug", "info", "trace"])


def said(log: bytes, output: bytes = b"") -> str:
    """Return what matters of a log, or of what was printed where the log is empty."""
    lines = [text for line in log.splitlines() if (text := _message(line))]
    if not lines:
        lines = [
            line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()
        ]
    unique = list(dict.fromkeys(lines[-_LINES:]))
    return "; ".join(unique)[:_BYTES] or "it said nothing"


def _message(line: bytes) -> str:
    try:
        entry = json.loads(line)
    except ValueError:
        return line.decode(errors="replace").strip()
    if not isinstance(entry, dict) or entry.get("level") in _QUIET:
        return ""
    return str(entry.get("msg", "")).strip()
