"""Everything that core lends or asks for, without privilege and without a kernel: in one import.

Each is complete and keeps its promises as far as one process can; `polypod.testing.faults` makes it break
them on purpose. The suites of this room are run on them too.
"""

from polypod.testing.clock import SystemClock, VirtualClock, settle
from polypod.testing.fake_logs import FakeCaptured, FakeLogs
from polypod.testing.fake_supervisor import FakeSupervisor
from polypod.testing.faults import Fault, Faults
from polypod.testing.memory_images import (
    DEMO,
    DEMO_SOURCE,
    MEMORY_IMAGES,
    ImageSource,
    MemoryImageStore,
)
from polypod.testing.memory_network import MEMORY_NETWORK, MemoryNetwork

__all__ = [
    "DEMO",
    "DEMO_SOURCE",
    "MEMORY_IMAGES",
    "MEMORY_NETWORK",
    "FakeCaptured",
    "FakeLogs",
    "FakeSupervisor",
    "Fault",
    "Faults",
    "ImageSource",
    "MemoryImageStore",
    "MemoryNetwork",
    "SystemClock",
    "VirtualClock",
    "settle",
]
