"""The entry point: offers ``vm``, and says what keeps it from working."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from collections.abc import Sequence

from polypod.plugin import (
    Hooks,
    RootfsForm,
    RuntimeBackend,
    RuntimeContext,
    RuntimeType,
    Unsupported,
    hookimpl,
    override,
)

_QEMU = {"x86_64": "qemu-system-x86_64", "aarch64": "qemu-system-aarch64"}


class VmPlugin(Hooks):
    """Offers ``vm``."""

    @override
    @hookimpl
    def polypod_runtime_types(self) -> Sequence[RuntimeType]:
        """Offer the type with all that this host, and this release, lack for it."""
        return (
            RuntimeType(
                name="vm",
                summary="each pod a virtual machine of its own: QEMU through libvirt",
                open=_open,
                rootfs_forms=(RootfsForm.BLOCK,),
                sandbox_namespaces=frozenset({"network"}),
                unusable="; ".join(missing()),
            ),
        )


async def _open(context: RuntimeContext) -> RuntimeBackend:
    raise Unsupported(f"runtime handler {context.handler!r}: {'; '.join(missing())}")


def missing() -> list[str]:
    """Return what a VM pod needs and is not there, one phrase each."""
    found = []
    if importlib.util.find_spec("libvirt") is None:
        found.append("the Python module libvirt is not installed (libvirt-python)")
    machine = platform.machine()
    emulator = _QEMU.get(machine)
    if emulator is None:
        found.append(f"machines of type {machine} are not supported")
    elif shutil.which(emulator) is None:
        found.append(f"{emulator} is not on PATH")
    found.append("this release of polypod-vm contains the offer only, not the backend")
    return found


plugin = VmPlugin()
