"""Hosts, pods and LANs of a test's own."""

from __future__ import annotations

import pytest
from support import networks


@pytest.fixture
def host():
    """A network namespace that plays the host, for this thread and all that it starts."""
    with networks.own_host():
        yield


@pytest.fixture
def pods(host):
    made: list[networks.Pod] = []

    def make():
        made.append(networks.Pod())
        return made[-1]

    yield make
    for pod in made:
        pod.close()
