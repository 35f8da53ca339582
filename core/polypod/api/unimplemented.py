"""The calls of CRI that this version answers with UNIMPLEMENTED: the only list of them.

The kubelet has a way of its own for each: cAdvisor for pod statistics, unary calls for streams,
polling for events. A test checks that this list and the services together are all 43 calls.
"""

from __future__ import annotations

from typing import Final

UNIMPLEMENTED: Final = frozenset(
    {
    }
)
