"""The contract of a network as checks; used like `polypod.testing.runtime_suite`."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Protocol

from polypod.plugin import requests
from polypod.plugin.ids import SandboxId, new_id
from polypod.plugin.network import Attachment, AttachRequest, Network
from polypod.plugin.requests import PortMapping
from polypod.testing.suite import Outcome, Verdict, expect, judge, soon

__all__ = ["CHECKS", "Check", "NetworkLab", "NetworkSubject", "Outcome", "run_check"]


class NetworkSubject(Protocol):
    """What the author of a network writes to have it checked."""

    exceptions: Mapping[str, str]
    """Check → the reason why the network does not pass it by design."""

    async def open(self) -> Network:
        """Open the network; called again, on the same directories, to play a restart."""
        ...

    async def request(self, sandbox_id: SandboxId, /) -> AttachRequest:
        """Make a network namespace and what else belongs to a request."""
        ...

    async def discard(self, request: AttachRequest, /) -> None:
        """Give back what `request` made: the namespace dies with it."""
        ...


class NetworkLab:
    """Everything that a check may do."""

    def __init__(self, subject: NetworkSubject) -> None:
        self.subject = subject
        self.network: Network
        self._requests: dict[SandboxId, AttachRequest] = {}

    async def open(self) -> None:
        """Open the network."""
        self.network = await soon(self.subject.open(), "open")

    async def restart(self) -> None:
        """Close it and open it again."""
        await soon(self.network.close(), "close")
        await self.open()

    async def close(self) -> None:
        """Detach everything; `Violation` if a lease is left then."""
        for sandbox_id in list(self._requests):
            await soon(self.network.detach(sandbox_id, None), "detach")
            await self.forget(sandbox_id)
        left = list(await self.network.attached())
        await soon(self.network.close(), "close")
        expect(not left, f"leases are left: {left}")

    async def request(self) -> AttachRequest:
        """Return a request for a new sandbox."""
        sandbox_id = SandboxId(new_id())
        self._requests[sandbox_id] = await self.subject.request(sandbox_id)
        return self._requests[sandbox_id]

    async def forget(self, sandbox_id: SandboxId) -> None:
        """Let a sandbox's namespace die."""
        await self.subject.discard(self._requests.pop(sandbox_id))

    async def attach(self) -> tuple[SandboxId, Attachment]:
        """Attach a new sandbox."""
        request = await self.request()
        return request.sandbox_id, await soon(self.network.attach(request), "attach")

    async def detach(self, sandbox_id: SandboxId, attachment: Attachment | None) -> None:
        """Detach a sandbox."""
        await soon(self.network.detach(sandbox_id, attachment), "detach")

    async def attached(self) -> set[SandboxId]:
        """Return who holds a lease."""
        return set(await soon(self.network.attached(), "attached"))


Check = Callable[[NetworkLab], Awaitable[None]]


async def run_check(check: Check, subject: NetworkSubject) -> Verdict:
    """Run one check on a subject, clean up, and say how it ended."""

    async def work() -> None:
        lab = NetworkLab(subject)
        await lab.open()
        try:
            await check(lab)
        except BaseException:
            with contextlib.suppress(Exception):  # what the check found matters more
                await lab.close()
            raise
        await lab.close()

    return await judge(getattr(check, "__name__", ""), work, subject.exceptions)


async def check_attach_gives_addresses(lab: NetworkLab) -> None:
    """A sandbox gets at least one address, each an IP address without a prefix length."""
    _, attachment = await lab.attach()
    expect(attachment.ips, "it has no address")
    for text in attachment.ips:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            expect(holds=False, text=f"{text!r} is no address")
            return
        usable = not (address.is_unspecified or address.is_loopback or address.is_multicast)
        expect(usable, f"{address} cannot be a pod's address")


async def check_families_are_distinct(lab: NetworkLab) -> None:
    """A sandbox has at most one address of each family: CRI reports one primary and the others."""
    _, attachment = await lab.attach()
    versions = [ipaddress.ip_address(text).version for text in attachment.ips]
    expect(len(versions) == len(set(versions)), f"its addresses are {attachment.ips}")


async def check_addresses_are_unique(lab: NetworkLab) -> None:
    """No two sandboxes have an address in common."""
    seen: list[str] = []
    for _ in range(5):
        seen += (await lab.attach())[1].ips
    expect(len(seen) == len(set(seen)), f"an address was given twice: {sorted(seen)}")


async def check_concurrent_attaches(lab: NetworkLab) -> None:
    """Sandboxes attached at the same time get different addresses."""
    attached = await asyncio.gather(*(lab.attach() for _ in range(8)))
    seen = [ip for _, attachment in attached for ip in attachment.ips]
    expect(len(seen) == len(set(seen)), f"an address was given twice: {sorted(seen)}")
    expect(await lab.attached() == {sandbox_id for sandbox_id, _ in attached}, "leases differ")


async def check_attached_lists_leases(lab: NetworkLab) -> None:
    """``attached`` has every sandbox that holds a lease, and no other."""
    expect(await lab.attached() == set(), "a new network has leases")
    first, _ = await lab.attach()
    second, _ = await lab.attach()
    expect(await lab.attached() == {first, second}, "the leases are others")


async def check_detach_takes_back(lab: NetworkLab) -> None:
    """A detached sandbox holds nothing; the others keep theirs."""
    first, attachment = await lab.attach()
    second, _ = await lab.attach()
    await lab.detach(first, attachment)
    expect(await lab.attached() == {second}, "the leases are others")


async def check_detach_is_idempotent(lab: NetworkLab) -> None:
    """``detach`` may be repeated, and of an unknown sandbox it succeeds."""
    sandbox_id, attachment = await lab.attach()
    for _ in range(3):
        await lab.detach(sandbox_id, attachment)
    await lab.detach(SandboxId(new_id()), None)
    await lab.detach(SandboxId(new_id()), attachment)


async def check_detach_without_attachment(lab: NetworkLab) -> None:
    """``detach`` works without the attachment: a daemon that crashed never stored it."""
    sandbox_id, _ = await lab.attach()
    await lab.detach(sandbox_id, None)
    expect(await lab.attached() == set(), "the lease is still there")


async def check_detach_after_the_namespace(lab: NetworkLab) -> None:
    """``detach`` works when the namespace is gone."""
    sandbox_id, attachment = await lab.attach()
    await lab.forget(sandbox_id)
    await lab.detach(sandbox_id, attachment)
    expect(await lab.attached() == set(), "the lease is still there")


async def check_result_is_json(lab: NetworkLab) -> None:
    """The result is JSON: core stores it and hands it back, also after a restart."""
    sandbox_id, attachment = await lab.attach()
    stored = json.loads(json.dumps(dict(attachment.result)))
    await lab.restart()
    await lab.detach(sandbox_id, Attachment(tuple(attachment.ips), stored))
    expect(await lab.attached() == set(), "the lease is still there")


async def check_restart_keeps_leases(lab: NetworkLab) -> None:
    """Leases survive a restart; their addresses are not given to others."""
    sandbox_id, attachment = await lab.attach()
    await lab.restart()
    expect(sandbox_id in await lab.attached(), "the lease is lost")
    for _ in range(3):
        _, other = await lab.attach()
        shared = set(other.ips) & set(attachment.ips)
        expect(not shared, f"{shared} was given to another sandbox")


async def check_addresses_come_back(lab: NetworkLab) -> None:
    """Sandboxes that come and go do not use the addresses up."""
    seen: set[str] = set()
    for _ in range(30):
        sandbox_id, attachment = await lab.attach()
        seen.update(attachment.ips)
        await lab.detach(sandbox_id, attachment)
        await lab.forget(sandbox_id)
    expect(await lab.attached() == set(), "leases are left")
    expect(seen, "no address was given")


async def check_failed_attach_leaves_nothing(lab: NetworkLab) -> None:
    """An attach that fails, here for a namespace that is none, takes no address."""
    request = await lab.request()
    broken = AttachRequest(request.sandbox_id, request.metadata, namespace=-1, netlink=-1)
    try:
        await soon(lab.network.attach(broken), "attach")
    except Exception:  # noqa: BLE001 - whichever error: what counts is what is left
        expect(await lab.attached() == set(), "the failed attach holds a lease")


async def check_cancelled_attach_leaves_nothing(lab: NetworkLab) -> None:
    """An attach that is cancelled takes no address, at whichever moment that was."""
    for turns in range(6):
        request = await lab.request()
        task = asyncio.ensure_future(lab.network.attach(request))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            held = request.sandbox_id in await lab.attached()
            expect(not held, f"cancelled after {turns} turns of the loop, it holds a lease")
        else:
            await lab.detach(request.sandbox_id, None)


async def check_sandbox_can_be_attached_again(lab: NetworkLab) -> None:
    """After ``detach`` a sandbox can be attached anew: recovery repeats what a crash cut off."""
    request = await lab.request()
    first = await soon(lab.network.attach(request), "attach")
    await lab.detach(request.sandbox_id, first)
    await lab.forget(request.sandbox_id)
    _, again = await lab.attach()
    expect(again.ips, "it has no address")


async def check_host_ports_are_free_again(lab: NetworkLab) -> None:
    """A host port of a sandbox that was detached is free for the next one; port 0 asks for none."""
    mappings = (
        PortMapping(requests.Protocol.TCP, 80, 18080),
        PortMapping(requests.Protocol.UDP, 80, 18080, "127.0.0.1"),
        PortMapping(requests.Protocol.TCP, 81),
    )
    for _ in range(2):
        request = replace(await lab.request(), port_mappings=mappings)
        attachment = await soon(lab.network.attach(request), "attach with port mappings")
        expect(attachment.ips, "it has no address")
        await lab.detach(request.sandbox_id, attachment)
    expect(await lab.attached() == set(), "leases are left")


async def check_status_is_ready(lab: NetworkLab) -> None:
    """A network that can connect sandboxes says so; one that cannot gives a reason."""
    status = await soon(lab.network.status(), "status")
    expect(status.ready or status.reason, "it is not ready and gives no reason")
    if status.ready:
        _, attachment = await lab.attach()
        expect(attachment.ips, "it is ready and gives no address")


async def check_configure_accepts_what_the_kubelet_sends(lab: NetworkLab) -> None:
    """``configure`` with no CIDR, or with the same one twice, leaves connected sandboxes alone."""
    sandbox_id, _ = await lab.attach()
    await soon(lab.network.configure([]), "configure")
    for _ in range(2):
        await soon(lab.network.configure(["10.199.0.0/24"]), "configure")
    expect(sandbox_id in await lab.attached(), "the lease is lost")


async def check_close_keeps_leases(lab: NetworkLab) -> None:
    """``close`` lets go of sockets alone; it may be repeated."""
    sandbox_id, _ = await lab.attach()
    await soon(lab.network.close(), "close")
    await soon(lab.network.close(), "close")
    await lab.open()
    expect(sandbox_id in await lab.attached(), "the lease is lost")


CHECKS: tuple[Check, ...] = tuple(
    value for name, value in list(globals().items()) if name.startswith("check_")
)
