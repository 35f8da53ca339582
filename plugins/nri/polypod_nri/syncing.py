"""Synchronize: all that there is, in as many messages as it takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from polypod.plugin.observer import ContainerFacts, SandboxFacts
from polypod_nri import describing
from polypod_nri.connection import Gone, Refused
from polypod_nri.framing import MAX_PAYLOAD
from polypod_nri.peer import Peer
from polypod_nri.wire import api

PART = MAX_PAYLOAD // 2
"""What one message may have, in bytes: the half of what may be sent, for what is put around it."""


async def synchronize(
    peer: Peer, sandboxes: Sequence[SandboxFacts], containers: Sequence[ContainerFacts]
) -> list[api.ContainerUpdate]:
    """Tell a plugin what there is; return what it wants to be changed of it.

    Raises:
        Gone: it is closed: it refused, did not answer, or answered a part as if it were all.
    """
    parts = list(split(sandboxes, containers))
    for number, part in enumerate(parts):
        part.more = number + 1 < len(parts)
        try:
            answer = await peer.synchronize(part)
        except Refused as error:
            peer.abandon(f"it refused Synchronize: {error}")
            raise Gone(peer.reason) from error
        if not part.more:
            return list(answer.update)
        if not answer.more or answer.update:
            peer.abandon(
                f"it cannot be told of {len(sandboxes)} sandboxes and {len(containers)} containers: it "
                "does not take Synchronize in parts"
            )
            raise Gone(peer.reason)
    raise AssertionError  # there is always a last part


def split(
    sandboxes: Sequence[SandboxFacts], containers: Sequence[ContainerFacts], part: int = PART
) -> Iterator[api.SynchronizeRequest]:
    """Yield messages of at most ``part`` bytes each, or of one object: sandboxes first; at least one."""
    message, size = api.SynchronizeRequest(), 0
    described = (
        *(("pods", describing.sandbox, each) for each in sandboxes),
        *(("containers", describing.container, each) for each in containers),
    )
    for name, describe, facts in described:
        each = describe(facts)  # type: ignore[operator]  # each with what it describes
        length = each.ByteSize() + 8
        if size and size + length > part:
            yield message
            message, size = api.SynchronizeRequest(), 0
        getattr(message, name).append(each)
        size += length
    yield message
