"""CNI plugins as programs: found in the configured directories, executed, their errors understood.

Spec:
    containernetworking/cni SPEC.md, section 2 (Execution protocol) and section 5 (Error).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from polypod.plugin.errors import BackendError, PolypodError, Unavailable
from polypod_network.cni import execution
from polypod_network.cni.configuration import is_component
from polypod_network.cni.execution import Finished

_AGAIN = {11, 50, 51}
"""Error codes of the specification: try again later; not available; limited connectivity."""
_TAIL = 2000
"""Characters of what a plugin wrote that go into an error text."""


@dataclass(frozen=True, slots=True)
class Call:
    """The parameters of one execution that stand in its environment."""

    command: str
    container_id: str = ""
    netns: str = ""
    interface: str = ""
    arguments: str = ""


class Plugins:
    """The plugins of some directories."""

    def __init__(self, bin_dirs: Sequence[Path], timeout_s: float) -> None:
        self._bin_dirs = tuple(bin_dirs)
        self._timeout_s = timeout_s
        self._versions: dict[Path, tuple[tuple[int, int], frozenset[str]]] = {}

    async def run(
        self, network: str, kind: str, call: Call, config: Mapping[str, object]
    ) -> dict[str, object] | None:
        """Execute a plugin and return what it printed as JSON; None if it printed nothing.

        Raises:
            Unavailable: it says that it can do so later.
            BackendError: it failed, hung, is not there or printed something else.
        """
        what = f"network {network!r}: plugin {kind!r}: {call.command}"
        program = self.find(network, kind)
        finished = await self._execute(what, program, call, json.dumps(config).encode())
        if finished.code != 0:
            raise _failure(what, finished)
        if not finished.stdout.strip():
            return None
        answer = _object(finished.stdout)
        if answer is None:
            raise BackendError(f"{what}: it printed no JSON object: {_tail(finished.stdout)}")
        return answer

    async def versions(self, network: str, kind: str) -> frozenset[str]:
        """Ask a plugin once which versions of CNI it speaks."""
        program = self.find(network, kind)
        facts = program.stat()
        stamp = (facts.st_mtime_ns, facts.st_ino)
        known = self._versions.get(program)
        if known is None or known[0] != stamp:
            answer = await self.run(network, kind, Call("VERSION"), {"cniVersion": "1.0.0"})
            listed = (answer or {}).get("supportedVersions")
            found = frozenset(map(str, listed)) if isinstance(listed, list) else frozenset()
            known = self._versions[program] = (stamp, found)
        return known[1]

    def find(self, network: str, kind: str) -> Path:
        """Return the program of a plugin type.

        Raises:
            BackendError: there is none; E22: or the type is a path.
        """
        if is_component(kind):
            for directory in self._bin_dirs:
                program = directory / kind
                if program.is_file() and os.access(program, os.X_OK):
                    return program
        places = ", ".join(map(str, self._bin_dirs))
        raise BackendError(
            f"network {network!r}: plugin {kind!r}: no such program in {places} "
            "(network.cni.bin_dirs)"
        )

    async def _execute(self, what: str, program: Path, call: Call, stdin: bytes) -> Finished:
        try:
            return await execution.execute(
                program,
                stdin=stdin,
                environment=self._environment(call),
                timeout_s=self._timeout_s,
            )
        except TimeoutError as error:
            raise BackendError(
                f"{what}: it did not end within {self._timeout_s:g} s and was killed "
                "(network.cni.timeout_s)"
            ) from error
        except OSError as error:
            raise BackendError(f"{what}: {program} cannot be executed: {error}") from error

    def _environment(self, call: Call) -> dict[str, str]:
        # Plugins need PATH, proxies and the like; a CNI_ of ours would be taken for an argument.
        found = {key: value for key, value in os.environ.items() if not key.startswith("CNI_")}
        found |= {
            "CNI_COMMAND": call.command,
            "CNI_CONTAINERID": call.container_id,
            "CNI_NETNS": call.netns,
            "CNI_IFNAME": call.interface,
            "CNI_ARGS": call.arguments,
            "CNI_PATH": os.pathsep.join(map(str, self._bin_dirs)),
        }
        return found


def _failure(what: str, finished: Finished) -> PolypodError:
    """Return the error of a plugin that did not succeed, in its own words."""
    told = _object(finished.stdout)
    if told is None or not isinstance(told.get("msg"), str):
        said = _tail(finished.stderr.strip() or finished.stdout.strip()) or "it said nothing"
        ending = f"signal {-finished.code}" if finished.code < 0 else f"status {finished.code}"
        return BackendError(f"{what}: it ended with {ending}: {said}")
    details = f": {told['details']}" if told.get("details") else ""
    code = told.get("code")
    text = f"{what}: {told['msg']}{details} (code {code})"
    return Unavailable(text) if code in _AGAIN else BackendError(text)


def _object(raw: bytes) -> dict[str, object] | None:
    try:
        tree = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return tree if isinstance(tree, dict) else None


def _tail(raw: bytes) -> str:
    return raw.decode(errors="replace")[-_TAIL:]
