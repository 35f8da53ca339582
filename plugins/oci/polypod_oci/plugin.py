"""The entry point: offers ``oci``, a type whose handlers each name a runtime's binary."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from polypod.plugin import (
    Hooks,
    RootfsForm,
    RuntimeBackend,
    RuntimeContext,
    RuntimeType,
    hookimpl,
    override,
)
from polypod_oci.features import WIDEST

EXCEPTIONS: Final = {
    "check_environment_keeps_bytes": (
        "config.json is JSON, which is UTF-8: a value with other bytes is refused, not changed"
    ),
}


class OciPlugin(Hooks):
    """Offers ``oci``."""

    @override
    @hookimpl
    def polypod_runtime_types(self) -> Sequence[RuntimeType]:
        """Offer the type; which binary it is stands in each handler's options."""
        return (
            RuntimeType(
                name="oci",
                summary="any OCI runtime by the path of its binary: runc, crun and their like",
                open=_open,
                rootfs_forms=(RootfsForm.OVERLAY, RootfsForm.DIRECTORY, RootfsForm.EROFS),
                features=WIDEST,
                sandbox_namespaces=frozenset(["network", "ipc", "uts", "pid"]),
                unusable=""
                if os.geteuid() == 0
                else "needs root: runtimes make namespaces and mounts",
                exceptions=EXCEPTIONS,
            ),
        )


async def _open(context: RuntimeContext) -> RuntimeBackend:
    # Imported when it is opened: offering it costs nothing.
    from polypod_oci.backend import open_backend

    return await open_backend(context)


plugin = OciPlugin()
