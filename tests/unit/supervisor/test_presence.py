"""Who lives for a state directory."""

import os
import signal
import subprocess
import sys

import pytest

from polypod.supervisor import start
from polypod.supervisor.presence import ROLES, Presence

_HOLD = """
import os, sys
sys.path.insert(0, sys.argv[1])
from polypod.supervisor.presence import Presence
presence = Presence.open(sys.argv[2])
assert presence.take(sys.argv[3], wait=False)
if os.fork() == 0:
    # What it forks holds nothing, even if it lives longer.
    os.execv("/bin/sleep", ["sleep", "60"])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the supervisor's byte; its child outlives it."""
    made = subprocess.Popen(
        [sys.executable, "-c", _HOLD, start.code_root(), str(tmp_path), "supervisor"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert made.stdout.readline() == b"held\n"
    yield made
    os.killpg(made.pid, signal.SIGKILL)
    made.stdin.close()
    made.stdout.close()
    made.wait()


def test_nobody_lives_in_a_fresh_directory(tmp_path):
    presence = Presence.open(str(tmp_path))
    assert [presence.holder(role) for role in ROLES] == [0, 0, 0]
    assert presence.take("keeper", wait=False)
    os.close(presence.fd)


def test_holder_is_found_by_pid_and_its_role_alone_is_taken(tmp_path, holder):
    presence = Presence.open(str(tmp_path))
    assert presence.holder("supervisor") == holder.pid
    assert not presence.take("supervisor", wait=False)
    assert presence.take("logger", wait=False)
    os.close(presence.fd)


def test_role_is_free_when_its_holder_is_killed_although_its_child_lives(tmp_path, holder):
    presence = Presence.open(str(tmp_path))
    os.kill(holder.pid, signal.SIGKILL)
    assert presence.take("supervisor", wait=True)
    os.close(presence.fd)
