"""All probes, in the order in which a person would go through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from polypod.doctor import calls, cgroups, kvm, network, privilege, security
from polypod.doctor.row import Row, State

Probe = Callable[[], Row]
PROBES: tuple[Probe, ...] = (
    calls.kernel,
    privilege.root,
    privilege.capabilities,
    cgroups.version,
    cgroups.controllers,
    calls.overlay,
    calls.mount_api,
    calls.process_calls,
    calls.user_namespaces,
    calls.idmapped_mounts,
    security.seccomp,
    security.modules,
    network.nftables,
    network.links,
    network.forwarding,
    privilege.descriptors,
    kvm.kvm,
)


def rows(probes: Sequence[Probe] = PROBES) -> list[Row]:
    """Run the probes; one that fails itself is a row too."""
    found = []
    for probe in probes:
        try:
            found.append(probe())
        except Exception as error:  # noqa: BLE001 - one strange host must not hide the other rows
            name = probe.__name__.replace("_", " ")
            found.append(Row(name, State.LIMITED, f"the probe itself failed: {error!r}"))
    return found


def report() -> list[tuple[str, str, str]]:
    """Return (what, state, fact or remedy) for `polypod doctor`."""
    return [(row.what, row.state.value, row.text) for row in rows()]


def missing() -> list[str]:
    """Return why real pods cannot run here, one sentence each; empty if they can."""
    return [f"{row.what}: {row.text}" for row in rows() if row.state is State.MISSING]
