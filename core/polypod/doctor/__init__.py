"""What this host can and cannot do for pods, why, and what to do about it. Nothing of it stays behind.

Each probe tries the thing itself where that is possible: a device node, a version number or a line in
``/proc`` can all be there without what they promise.
"""

from polypod.doctor.report import missing, report
from polypod.doctor.row import Row

__all__ = ["Row", "missing", "report"]
