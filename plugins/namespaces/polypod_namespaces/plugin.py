"""The entry point: offers the namespaces engine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from polypod.plugin.hooks import Hooks, hookimpl, override
from polypod.plugin.rootfs import RootfsForm
from polypod.plugin.runtime import Feature, RuntimeBackend, RuntimeContext, RuntimeType

FEATURES: Final = frozenset(
    [
        Feature.HOST_NETWORK,
        Feature.HOST_PID,
        Feature.HOST_IPC,
        Feature.SHARED_PID,
        Feature.TARGET_PID,
        Feature.PRIVILEGED,
        Feature.DEVICES,
        Feature.HOST_PATH_MOUNTS,
        Feature.BIDIRECTIONAL_MOUNTS,
        Feature.RECURSIVE_READ_ONLY,
        Feature.IMAGE_VOLUMES,
        Feature.USER_NAMESPACES,
        Feature.SECCOMP,
        Feature.SYSCTLS,
        Feature.RESOURCES,
        Feature.TTY,
    ]
)
_NEEDED_CAPABILITIES: Final = {"CAP_SYS_ADMIN": 21, "CAP_SYS_CHROOT": 18, "CAP_MKNOD": 27}


class NamespacesPlugin(Hooks):
    """Offers ``namespaces``."""

    @override
    @hookimpl
    def polypod_runtime_types(self) -> Sequence[RuntimeType]:
        """Offer the engine of our own."""
        return (
            RuntimeType(
                name="namespaces",
                summary="Linux namespaces and cgroups, in Python; nothing is executed but your program",
                open=_open,
                rootfs_forms=(RootfsForm.OVERLAY, RootfsForm.DIRECTORY, RootfsForm.EROFS),
                features=FEATURES,
                sandbox_namespaces=frozenset(["network", "ipc", "uts", "pid", "user"]),
                unusable=_why_unusable(),
            ),
        )


async def _open(context: RuntimeContext) -> RuntimeBackend:
    # Imported when it is opened: offering it costs nothing.
    from polypod_namespaces.backend import open_backend

    return await open_backend(context)


def _why_unusable() -> str:
    if os.geteuid() != 0:
        return "needs root: namespaces, mounts and cgroups are made for other users"
    with open("/proc/self/status") as status:
        effective = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff"))
    missing = [name for name, bit in _NEEDED_CAPABILITIES.items() if not effective >> bit & 1]
    return f"needs {', '.join(missing)}" if missing else ""


plugin = NamespacesPlugin()
