"""The state tables: state and event to state, for sandboxes and for containers.

A missing entry is a refusal. A repeated call that CRI wants to succeed is an entry that leads
back to where it starts: idempotence is data here, not code. ``python -m polypod.lifecycle.diagram``
draws docs/lifecycle-states.md from these tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from polypod.lifecycle.views import ContainerState, SandboxState
from polypod.plugin.errors import FailedPrecondition


class SandboxEvent(StrEnum):
    """What may happen to a sandbox."""

    READIED = "readied"
    """Everything is made."""
    FAILED = "failed"
    """Making it failed and everything was undone."""
    STUCK = "stuck"
    """Something could not be undone or is in an unknown state."""
    STOPPED = "stopped"
    """StopPodSandbox."""
    DIED = "died"
    """What holds it together is gone without being asked, or the host rebooted."""
    REMOVED = "removed"
    """RemovePodSandbox has given everything back."""


class ContainerEvent(StrEnum):
    """What may happen to a container."""

    CREATED = "created"
    STARTED = "started"
    START_FAILED = "start-failed"
    EXITED = "exited"
    FAILED = "failed"
    """Creating it failed and everything was undone."""
    STUCK = "stuck"
    REMOVED = "removed"


class TransitionError(FailedPrecondition):
    """The state does not allow the event; the text names both."""


_S, _SE = SandboxState, SandboxEvent
_C, _CE = ContainerState, ContainerEvent

SANDBOX: Final[Mapping[SandboxState, Mapping[SandboxEvent, SandboxState]]] = {
    _S.CREATING: {
        _SE.READIED: _S.READY,
        _SE.FAILED: _S.REMOVED,
        _SE.STUCK: _S.UNKNOWN,
    },
    _S.READY: {
        _SE.STOPPED: _S.NOT_READY,
        _SE.DIED: _S.NOT_READY,
        _SE.STUCK: _S.UNKNOWN,
    },
    _S.NOT_READY: {
        _SE.STOPPED: _S.NOT_READY,  # api.proto, StopPodSandbox: "idempotent"
        _SE.DIED: _S.NOT_READY,
        _SE.REMOVED: _S.REMOVED,
    },
    _S.UNKNOWN: {
        _SE.STOPPED: _S.NOT_READY,
        _SE.DIED: _S.UNKNOWN,
        _SE.STUCK: _S.UNKNOWN,
    },
    _S.REMOVED: {
        _SE.STOPPED: _S.REMOVED,  # api.proto: the sandbox may be gone already
        _SE.REMOVED: _S.REMOVED,
    },
}

CONTAINER: Final[Mapping[ContainerState, Mapping[ContainerEvent, ContainerState]]] = {
    _C.CREATING: {
        _CE.CREATED: _C.CREATED,
        _CE.FAILED: _C.REMOVED,
        _CE.STUCK: _C.UNKNOWN,
    },
    _C.CREATED: {
        _CE.STARTED: _C.RUNNING,
        _CE.START_FAILED: _C.EXITED,
        _CE.EXITED: _C.EXITED,  # it ran and ended while no daemon was there to record the start
        _CE.STUCK: _C.UNKNOWN,
        _CE.REMOVED: _C.REMOVED,
    },
    _C.RUNNING: {
        _CE.EXITED: _C.EXITED,
        _CE.STUCK: _C.UNKNOWN,
    },
    _C.EXITED: {
        _CE.EXITED: _C.EXITED,  # told again after a restart: the first record holds
        _CE.REMOVED: _C.REMOVED,
    },
    _C.UNKNOWN: {
        _CE.EXITED: _C.EXITED,
        _CE.STUCK: _C.UNKNOWN,
        _CE.REMOVED: _C.REMOVED,
    },
    _C.REMOVED: {
        _CE.REMOVED: _C.REMOVED,
    },
}


def next_sandbox(state: SandboxState, event: SandboxEvent) -> SandboxState:
    """Return where an event leads.

    Raises:
        TransitionError: the state does not allow the event.
    """
    following = SANDBOX[state].get(event)
    if following is None:
        raise TransitionError(f"a sandbox that is {state} cannot be {event}")
    return following


def next_container(state: ContainerState, event: ContainerEvent) -> ContainerState:
    """Return where an event leads.

    Raises:
        TransitionError: the state does not allow the event.
    """
    following = CONTAINER[state].get(event)
    if following is None:
        raise TransitionError(f"a container that is {state} cannot be {event}")
    return following
