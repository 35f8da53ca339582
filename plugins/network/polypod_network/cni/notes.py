"""Which sandbox may hold something of which network: one file each, written before anything is asked for.

A note keeps the configuration and the arguments that ADD ran with, and its result once there is one: DEL has
to get the same, whatever the directory of configurations has become, after a crash or a reboot.

Spec:
    containernetworking/cni SPEC.md, section 2: "the runtime must persist" the result.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from polypod.plugin.ids import SandboxId
from polypod_network.cni.configuration import NetworkList, parse

_SUFFIX = ".json"


@dataclass(frozen=True, slots=True)
class Note:
    """One attachment."""

    sandbox_id: SandboxId
    network: NetworkList
    interface: str
    netns: str
    """Path of the namespace while it lives."""
    arguments: str
    """``CNI_ARGS``."""
    capability_arguments: Mapping[str, object] = field(default_factory=dict)
    result: Mapping[str, object] | None = None
    """What ADD returned; None as long as it has not."""


class Notes:
    """The notes of one network type, in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._known = {each.stem for each in directory.iterdir() if each.suffix == _SUFFIX}

    def sandboxes(self) -> list[SandboxId]:
        """Return who has a note."""
        return [SandboxId(each) for each in sorted(self._known)]

    def has(self, sandbox_id: SandboxId) -> bool:
        """Tell whether a sandbox has a note."""
        return sandbox_id in self._known

    def write(self, note: Note) -> None:
        """Write a note; it is on the disk when this returns."""
        tree = {
            "network": note.network.as_json(),
            "source": note.network.source,
            "interface": note.interface,
            "netns": note.netns,
            "arguments": note.arguments,
            "capabilityArguments": note.capability_arguments,
            "result": note.result,
        }
        path = self._path(note.sandbox_id)
        fresh = path.with_suffix(".new")
        with fresh.open("w") as file:
            json.dump(tree, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        self._sync()
        self._known.add(note.sandbox_id)

    def read(self, sandbox_id: SandboxId) -> Note:
        """Read a note.

        Raises:
            ValueError: it is damaged.
        """
        path = self._path(sandbox_id)
        try:
            tree = json.loads(path.read_bytes())
            return Note(
                sandbox_id=sandbox_id,
                network=parse(tree["network"], str(tree["source"])),
                interface=str(tree["interface"]),
                netns=str(tree["netns"]),
                arguments=str(tree["arguments"]),
                capability_arguments=dict(tree["capabilityArguments"]),
                result=tree["result"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            msg = f"note {path} is damaged: {error!r}"
            raise ValueError(msg) from error

    def remove(self, sandbox_id: SandboxId) -> None:
        """Forget a sandbox."""
        self._path(sandbox_id).unlink(missing_ok=True)
        self._sync()
        self._known.discard(sandbox_id)

    def _path(self, sandbox_id: SandboxId) -> Path:
        return self._directory / f"{sandbox_id}{_SUFFIX}"

    def _sync(self) -> None:
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
