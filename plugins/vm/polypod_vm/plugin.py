"""The entry point: offers ``vm``, says what keeps it from working, and offers ``polypod vm``."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Sequence
from typing import Final

from polypod.plugin import (
    CommandType,
    Feature,
    Hooks,
    RootfsForm,
    RuntimeBackend,
    RuntimeContext,
    RuntimeType,
    Unsupported,
    hookimpl,
    override,
)
from polypod_vm import command, guests, kernelimage

FEATURES: Final = frozenset(
    [
        Feature.SHARED_PID,
        Feature.TARGET_PID,
        Feature.SECCOMP,
        Feature.RESOURCES,
        Feature.SYSCTLS,
        Feature.TTY,
    ]
)
"""No host namespaces, devices or paths: the host is another machine."""


class VmPlugin(Hooks):
    """Offers ``vm``."""

    @override
    @hookimpl
    def polypod_runtime_types(self) -> Sequence[RuntimeType]:
        """Offer the type, with all that this host lacks for it."""
        return (
            RuntimeType(
                name="vm",
                summary="each pod a virtual machine of its own: QEMU through libvirt",
                open=_open,
                rootfs_forms=(RootfsForm.BLOCK,),
                features=FEATURES,
                sandbox_namespaces=frozenset({"network"}),
                unusable="; ".join(missing()),
            ),
        )

    @override
    @hookimpl
    def polypod_commands(self) -> Sequence[CommandType]:
        """Offer ``polypod vm``."""
        return (command.VM,)


async def _open(context: RuntimeContext) -> RuntimeBackend:
    reasons = missing()
    if reasons:
        raise Unsupported(f"runtime handler {context.handler!r}: {'; '.join(reasons)}")
    # Imported when it is opened: a host without libvirt can still say that it lacks it.
    from polypod_vm.backend import open_backend

    return await open_backend(context)


def missing() -> list[str]:
    """Return what a VM pod needs and is not there, one phrase each."""
    found = []
    if os.geteuid() != 0:
        found.append("needs root: taps and machines are made for other users")
    if importlib.util.find_spec("libvirt") is None:
        found.append("the Python module libvirt is not installed (libvirt-python)")
    machine = platform.machine()
    if machine not in guests.EMULATORS:
        found.append(f"machines of type {machine} are not supported")
    elif guests.emulator() is None:
        found.append(f"{guests.EMULATORS[machine]} is not on PATH (qemu-system-x86)")
    if shutil.which("libvirtd", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None:
        found.append("libvirtd is not installed (libvirt-daemon, libvirt-daemon-driver-qemu)")
    if kernelimage.find() is None:
        found.append("no kernel for virtual machines is in /boot (linux-image-cloud-amd64)")
    return found


plugin = VmPlugin()
