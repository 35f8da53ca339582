"""From a container's description to what the guest is asked: pure, nothing is opened.

The plan is compiled as on a host; only its sources differ: ``disk:SERIAL`` is a block device of the guest with
an overlay over it, ``stream:NAME`` an end of the channel, ``bind:N`` a file that the guest has.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from polypod.plugin import (
    ContainerSpec,
    ExecSpec,
    NamespaceMode,
    Resources,
    SandboxConfig,
    Stdio,
    Unsupported,
)
from polypod.plugin.oci import Namespace, OciConfig, OciMount, OciResources
from polypod.plugin.rootfs import BlockRootfs, Rootfs
from polypod.spec.cgroup import v2_files
from polypod.spec.cgroup_devices import device_program
from polypod.spec.compile import (
    CgroupView,
    ExecSources,
    MountSource,
    Sources,
    Streams,
    compile_container,
    compile_exec,
)
from polypod.spec.mount_options import parse_mount_options
from polypod.spec.resources import CgroupFacts, oci_resources
from polypod.spec.sysctls import checked_sysctls

POD_FILES: Final = {"hostname": "hostname", "hosts": "hosts", "resolv.conf": "resolv.conf"}
SHM: Final = "shm"
_IN_GUEST: Final = "/run/pod"
_OWN_CGROUP: Final = "cgroup:own"
_POD_KINDS: Final = frozenset(["ipc", "pid", "uts"])
_JOINABLE: Final = frozenset(["ipc", "uts", "pid", "cgroup", "mount"])
_SERIAL_LENGTH: Final = 20


@dataclass(frozen=True, slots=True)
class Image:
    """The block image of a container, and how the guest finds it."""

    path: Path
    fstype: str
    serial: str


def block_image(rootfs: Rootfs) -> Image:
    """Return the image of a rootfs.

    Raises:
        Unsupported: another form.
    """
    if not isinstance(rootfs, BlockRootfs):
        raise Unsupported(
            f"a VM takes block images as root file systems, not {type(rootfs).__name__}"
        )
    digest = hashlib.sha256(str(rootfs.path).encode()).hexdigest()
    return Image(rootfs.path, rootfs.fstype, digest[:_SERIAL_LENGTH])


def pod_kinds(mode: NamespaceMode) -> list[str]:
    """Return the namespaces that a pod's containers share; the machine itself is their network."""
    return sorted(_POD_KINDS if mode is NamespaceMode.POD else _POD_KINDS - {"pid"})


def pod_sysctls(config: SandboxConfig) -> dict[str, str]:
    """Return the kernel parameters of a pod, which its guest sets; judged as on a host.

    Raises:
        InvalidArgument: one belongs to no namespace of a pod.
    """
    return checked_sysctls(config.sysctls, host_network=False, host_ipc=False)


def guest_namespaces(config: OciConfig, pid: NamespaceMode) -> tuple[Namespace, ...]:
    """Return a container's namespaces inside its machine: those of the pod by name, no network.

    Args:
        config: as core made it.
        pid: the container's own wish.
    """
    found = []
    for item in config.linux.namespaces:
        if item.type == "network":
            continue
        if item.type in ("ipc", "uts") and not item.path.startswith("container:"):
            found.append(Namespace(item.type, f"sandbox:{item.type}"))
        elif item.type == "pid" and pid is NamespaceMode.POD:
            found.append(Namespace("pid", "sandbox:pid"))
        else:
            found.append(item)
    return tuple(found)


def launch_request(spec: ContainerSpec, image: Image) -> dict[str, object]:
    """Return what the guest is asked for a container's first process.

    Raises:
        InvalidArgument: the config contradicts itself.
        Unsupported: it asks for what a VM does not have.
    """
    config = _guest_config(spec)
    binds, mounts = _binds(config, spec.sandbox.directory)
    sources = Sources(
        root=f"disk:{image.serial}",
        streams=_streams(spec.stdio),
        cgroups=(_OWN_CGROUP,),
        namespaces={item.path: item.path for item in config.linux.namespaces if item.path},
        mounts=mounts,
        cgroup_view=CgroupView(2),
    )
    own = any(item.type == "pid" and not item.path for item in config.linux.namespaces)
    return {
        "op": "launch",
        "process": spec.id,
        "plan": compile_container(config, sources).to_wire(),
        "root": {"serial": image.serial, "fstype": image.fstype},
        "binds": binds,
        "cgroup": f"/pod/{spec.id}",
        "limits": v2_files(_guest_resources(config.linux.resources)),
        "devices": _device_filter(config.linux.resources),
        "own_pids": own,
        "streams": {},
    }


def exec_request(spec: ExecSpec, pid: NamespaceMode) -> dict[str, object]:
    """Return what the guest is asked for an extra process."""
    kinds = [item.type for item in guest_namespaces(spec.config, pid)]
    sources = ExecSources(
        pidfd=f"container:{spec.container_id}",
        kinds=tuple(kind for kind in kinds if kind in _JOINABLE),
        streams=_streams(spec.stdio),
        cgroups=(_OWN_CGROUP,),
    )
    plan = compile_exec(spec.process, spec.config.linux.seccomp, sources)
    return {
        "op": "exec",
        "process": spec.id,
        "container": spec.container_id,
        "plan": plan.to_wire(),
        "streams": {},
    }


def update_request(container_id: str, resources: Resources) -> dict[str, object]:
    """Return what the guest is asked for other limits."""
    wanted = oci_resources(resources, CgroupFacts(version=2))
    return {
        "op": "update",
        "process": container_id,
        "limits": v2_files(_guest_resources(wanted)),
    }


def streams_of(stdio: Stdio) -> dict[str, int]:
    """Return the standard streams that there are, by name."""
    named = {
        "stdin": stdio.stdin,
        "stdout": stdio.stdout,
        "stderr": stdio.stderr,
        "console": stdio.console,
    }
    return {name: fd for name, fd in named.items() if fd is not None}


def _streams(stdio: Stdio) -> Streams:
    return Streams(**{name: f"stream:{name}" for name in streams_of(stdio)})


def _guest_config(spec: ContainerSpec) -> OciConfig:
    config = spec.config
    namespaces = guest_namespaces(config, spec.request.security.namespaces.pid)
    return replace(
        config,
        # The machine has the pod's name already: the namespace is shared.
        hostname="",
        linux=replace(config.linux, namespaces=namespaces, sysctl={}),
    )


def _guest_resources(resources: OciResources) -> OciResources:
    """Processors are counted inside the machine: the host's numbers mean nothing there."""
    return replace(resources, cpu=replace(resources.cpu, cpus="", mems=""))


def _device_filter(resources: OciResources) -> str:
    """Return the program that keeps a container from the machine's own disks and from its channel."""
    if not resources.devices:
        return ""
    return base64.b64encode(device_program(resources.devices)).decode()


def _binds(
    config: OciConfig, directory: Path
) -> tuple[dict[str, Mapping[str, object]], dict[str, MountSource]]:
    """Return (source → what the guest opens, destination → source) of the bind mounts.

    Raises:
        Unsupported: a path of the host that the guest does not have.
    """
    binds: dict[str, Mapping[str, object]] = {}
    mounts: dict[str, MountSource] = {}
    for mount in config.mounts:
        if mount.type not in ("bind", "") and not {"bind", "rbind"} & set(mount.options):
            continue
        name = _pod_file(mount, directory)
        options = parse_mount_options(mount.options, mount.destination)
        source = f"bind:{len(binds)}"
        binds[source] = {
            "path": f"{_IN_GUEST}/{name}",
            "attributes": options.set_ | options.recursive_set,
        }
        mounts[mount.destination] = MountSource(source, name == SHM)
    return binds, mounts


def _pod_file(mount: OciMount, directory: Path) -> str:
    path = Path(mount.source)
    if path.parent == directory and (path.name in POD_FILES or path.name == SHM):
        return path.name
    raise Unsupported(
        f"mount {mount.destination}: {mount.source} is a path of the host, which a VM does not have: "
        "choose another handler or leave it out"
    )
