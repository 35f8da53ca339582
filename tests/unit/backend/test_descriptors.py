"""What a launch takes along: numbered, and closed if it is ours."""

from __future__ import annotations

import os

import pytest

from polypod.backend.descriptors import MAX_DESCRIPTORS, Descriptors
from polypod.plugin import ResourceExhausted, Stdio


def test_descriptors_are_numbered_and_only_our_own_closed():
    ours, lent = os.open("/dev/null", os.O_RDONLY), os.open("/dev/null", os.O_RDONLY)
    with Descriptors() as opened:
        assert (opened.take(ours), opened.lend(lent)) == ("fd:0", "fd:1")
        streams = opened.streams(Stdio(stdout=lent))
        assert (streams.stdin, streams.stdout, streams.stderr) == ("", "fd:2", "")
        assert opened.fds == [ours, lent, lent]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(ours)
    os.close(lent)


def test_more_than_a_message_carries_are_refused_and_closed():
    with Descriptors() as opened:
        for _ in range(MAX_DESCRIPTORS):
            opened.lend(0)
        ours = os.open("/dev/null", os.O_RDONLY)
        with pytest.raises(ResourceExhausted, match="fewer mounts"):
            opened.take(ours)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(ours)
