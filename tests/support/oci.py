"""An OCI runtime's handler as a subject of the runtime suite: the same requests as to the namespaces engine."""

from __future__ import annotations

from pathlib import Path

from polypod.plugin.runtime import RuntimeBackend, RuntimeContext
from polypod.processes.host import ProcessHost
from polypod_oci.plugin import plugin
from support.namespaces import NamespacesSubject


class OciSubject(NamespacesSubject):
    """A `RuntimeSubject` for one binary."""

    def __init__(
        self, directory: Path, root: Path, host: ProcessHost, parent: str, program: str
    ) -> None:
        super().__init__(directory, root, host, parent)
        (self.type,) = plugin.polypod_runtime_types()
        self._program = program

    async def open(self) -> RuntimeBackend:
        """Open it on the same state as before."""
        state = self._directory / "state"
        state.mkdir(parents=True, exist_ok=True)
        return await self.type.open(
            RuntimeContext(
                handler=self._program,
                options={"path": self._program},
                root=self._directory,
                state=state,
                cgroup_parent=self._parent,
                supervisor=self._host.supervisor,
            )
        )
