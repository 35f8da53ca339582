"""Limits of a living cgroup are changed: all, or none and the old ones hold.

Spec:
    kubernetes/cri-api api.proto, UpdateContainerResources; Documentation/admin-guide/cgroup-v2.rst,
    memory.max: a limit below what is in use kills, so it is refused before it is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from polypod.backend.cgroups import Cgroups
from polypod.plugin.errors import BackendError, FailedPrecondition

TYPE_CHECKING = False
if TYPE_CHECKING:
    from polypod.plugin.requests import Resources

Files = Mapping[str, Sequence[tuple[str, str]]]
"""Controller → (file, text), as `Cgroups.apply` takes them."""


def change(cgroups: Cgroups, path: str, files: Files) -> None:
    """Write limits in the order given; what was written before a refusal is taken back.

    Raises:
        FailedPrecondition: more memory is in use than the new limit allows.
        BackendError: the kernel refused a value; the old values hold.
    """
    _refuse_below_usage(cgroups, path, files)
    before = cgroups.read(path, files)
    try:
        cgroups.apply(path, files)
    except BackendError:
        cgroups.apply(path, before)
        raise


def update(cgroups: Cgroups, path: str, resources: Resources) -> None:
    """Change the limits of a cgroup to what CRI asks for; 0 leaves one as it is.

    Raises:
        InvalidArgument: the limits contradict each other.
        Unsupported: this host has no controller for one.
        FailedPrecondition: more memory is in use than the new limit allows.
        BackendError: the kernel refused a value; the old values hold.
    """
    from polypod.spec.cgroup import v1_files, v2_files
    from polypod.spec.resources import CgroupFacts, oci_resources

    swap = cgroups.has_swap_accounting()
    wanted = oci_resources(resources, CgroupFacts(cgroups.version, swap_accounting=swap))
    current = cgroups.memory_limit(path)
    if cgroups.version == 1:
        change(cgroups, path, v1_files(wanted, current_memory=current, swap_accounting=swap))
    else:
        change(cgroups, path, {"": v2_files(wanted, current_memory=current)})


def _refuse_below_usage(cgroups: Cgroups, path: str, files: Files) -> None:
    """On v1 the kernel refuses by itself, after it has given back what it can."""
    limit = next((text for name, text in files.get("", ()) if name == "memory.max"), "max")
    if cgroups.version == 1 or not limit.isdigit():
        return
    directory = cgroups.directory("memory", path)
    if directory is None:
        return
    used = int((directory / "memory.current").read_text())
    cached = 0
    for line in (directory / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "active_file"):
            cached += int(value)
    if used - cached > int(limit):
        raise FailedPrecondition(
            f"cgroup {path}: {used - cached} bytes are in use and cannot be given back, so memory cannot "
            f"be limited to {limit}: the container would be killed"
        )


def set_scores(pids: Iterable[int], score: int) -> None:
    """Set ``oom_score_adj`` of processes that live, as far as we may lower it (CAP_SYS_RESOURCE)."""
    for pid in pids:
        try:
            with open(f"/proc/{pid}/oom_score_adj", "w") as file:
                file.write(str(score))
        except PermissionError:
            return  # what the host does not allow for one it allows for none of them
        except OSError:
            continue  # it has ended
