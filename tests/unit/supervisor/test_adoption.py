"""Processes of other parents: found, and their ends read."""

import os
import subprocess
import time

import pytest

from polypod.supervisor import adoption
from polypod.supervisor.kernel import process


def start_time(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[19])


def until_ended(pidfd):
    while not adoption.has_ended(pidfd):
        time.sleep(0.005)


@pytest.fixture
def sleeper():
    made = subprocess.Popen(["sleep", "60"])
    yield made
    made.kill()
    made.wait()


def test_process_is_found_by_pid_and_start_time(sleeper):
    pidfd = adoption.find(sleeper.pid, start_time(sleeper.pid))
    assert pidfd >= 0
    assert not adoption.has_ended(pidfd)
    os.close(pidfd)


def test_another_process_of_the_same_pid_is_not_taken_for_it(sleeper):
    assert adoption.find(sleeper.pid, start_time(sleeper.pid) - 1) == -1
    assert adoption.find(0, 0) == -1
    assert adoption.find(1 << 30, 0) == -1


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        ("exit 0", {"code": 0, "signal": 0}),
        ("exit 3", {"code": 3, "signal": 0}),
        ("kill -KILL $$", {"code": 137, "signal": 9}),
        ("kill -TERM $$", {"code": 143, "signal": 15}),
    ],
)
def test_the_end_is_read_before_and_after_somebody_has_reaped_it(command, wanted):
    made = subprocess.Popen(["sh", "-c", f"read x; {command}"], stdin=subprocess.PIPE)
    began, pidfd = start_time(made.pid), process.pidfd_open(made.pid)
    made.stdin.close()
    until_ended(pidfd)
    found = adoption.status(made.pid, began, pidfd)
    # Who may not trace it is shown 0, which is not taken for a code.
    assert found == wanted or (wanted["code"] == 0 and found is None)
    made.wait()
    # A kernel before 6.15 does not know it any more; none knows another one.
    assert adoption.status(made.pid, began, pidfd) in (wanted, None)
    os.close(pidfd)


def test_an_end_that_nobody_knows_is_given_up_and_never_zero(monkeypatch):
    monkeypatch.setattr(adoption, "status", lambda *_: None)
    now = [100.0]
    monkeypatch.setattr(adoption.time, "monotonic", lambda: now[0])
    unread = adoption.Unread()
    assert unread.pause() == -1
    unread.add("a", 1, 2, 3)
    unread.add("b", 1, 2, 3)
    unread.forget("b")
    assert unread.take() == []
    assert unread.pause() > 0
    now[0] += 60
    assert unread.take() == [("a", {"code": None, "signal": 0})]
    assert unread.take() == []


def test_an_end_that_becomes_known_is_told(monkeypatch):
    answers = iter([None, {"code": 5, "signal": 0}])
    monkeypatch.setattr(adoption, "status", lambda *_: next(answers))
    unread = adoption.Unread()
    unread.add("a", 1, 2, 3)
    assert unread.take() == []
    assert unread.take() == [("a", {"code": 5, "signal": 0})]
