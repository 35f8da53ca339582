"""Device rules on cgroup v2, on whatever cgroup2 mount the host has (a hybrid host has an empty one)."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from polypod.backend import devicefilter
from polypod.plugin.errors import BackendError
from polypod.spec.cgroup_devices import device_program
from polypod.spec.devices import device_rules

pytestmark = pytest.mark.needs_root
_PROBE = """
import os, sys
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
for name in ("/dev/null", "/dev/zero", "/dev/kmsg"):
    try:
        os.close(os.open(name, os.O_RDONLY))
        print(name, "open")
    except OSError as error:
        print(name, error.strerror)
"""


def _unified() -> Path | None:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 "):
            return Path(left.split()[4])
    return None


@pytest.fixture
def group():
    mount = _unified()
    if mount is None:
        pytest.skip("no cgroup2 file system is mounted")
    path = mount / f"polypod-test-{secrets.token_hex(4)}"
    path.mkdir()
    yield path
    path.rmdir()


def _probe(group: Path) -> list[str]:
    command = [sys.executable, "-I", "-c", _PROBE, str(group)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_only_listed_devices_can_be_opened(group):
    assert "/dev/kmsg open" in _probe(group)
    devicefilter.attach(str(group), device_program(device_rules((), privileged=False)))
    assert _probe(group) == [
        "/dev/null open",
        "/dev/zero open",
        "/dev/kmsg Operation not permitted",
    ]


def test_what_is_no_program_is_refused(group):
    with pytest.raises(BackendError, match="device rules"):
        devicefilter.attach(str(group), b"\0" * 8)
    assert os.listdir(group)
