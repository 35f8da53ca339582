"""One pod's machine: its relay, its domain, its disks; booted, asked, ended."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import shutil
import signal as signals
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from polypod.plugin import (
    BackendError,
    NotFound,
    PolypodError,
    ProcessId,
    SandboxId,
    SandboxSpec,
    Supervisor,
    Unavailable,
)
from polypod_vm import child
from polypod_vm.domain import Disk, Domain, disk_target
from polypod_vm.hypervisor import Hypervisor
from polypod_vm.launching import POD_FILES, Image, pod_kinds
from polypod_vm.link import Message, RelayLink

_log = logging.getLogger(__name__)
_CONSOLE_TAIL: Final = 2000
_ENTROPY_BYTES: Final = 64
_ENDS_S: Final = 5.0
_QUIT_S: Final = 2.0


@dataclass(slots=True)
class Note:
    """What a restarted daemon has to know of a machine; one small file."""

    disks: dict[str, str] = field(default_factory=dict)
    """Serial → target, of the disks that were attached."""
    containers: list[str] = field(default_factory=list)
    """Ids: what else a guest tells of is not believed."""
    stopped: bool = False
    pid_mode: int = 0


@dataclass(frozen=True, slots=True)
class Places:
    """The paths of one machine."""

    directory: Path
    """Ours: socket of the relay, its log, the note."""
    inside: Path
    """The same directory as libvirt and QEMU name it."""

    emulator_log: Path | None = None
    """What QEMU has said; None where libvirt is not ours."""

    @property
    def console(self) -> Path:
        """The guest's serial port."""
        return self.directory / "console"

    @property
    def note(self) -> Path:
        """The note."""
        return self.directory / "note.json"


def domain_name(sandbox_id: SandboxId) -> str:
    """Return what libvirt calls a sandbox's machine."""
    return f"polypod-{sandbox_id[:24]}"


class Machine:
    """See the module's description. ``on_event`` gets what the guest tells, ``on_dead`` why it ended."""

    def __init__(
        self,
        sandbox_id: SandboxId,
        places: Places,
        supervisor: Supervisor,
        hypervisor: Hypervisor,
        *,
        on_event: Callable[[Message], None],
        on_dead: Callable[[str], None],
    ) -> None:
        """Name it; nothing is made."""
        self.id = sandbox_id
        self.name = domain_name(sandbox_id)
        self.note = Note()
        self.dead = ""
        self._places = places
        self._supervisor = supervisor
        self._hypervisor = hypervisor
        self._on_event = on_event
        self._on_dead = on_dead
        self._log = places.directory / "relay.log"
        self._relay = ProcessId(f"relay-{sandbox_id}")
        self._link = RelayLink(self._event, lambda: self._died("its relay was killed"))
        self._attaching = asyncio.Lock()

    # Booting

    async def boot(self, spec: SandboxSpec, domain: Domain, boot_s: float) -> None:
        """Start relay and domain, wait for the guest, tell it what it is.

        Raises:
            BackendError: it does not come up; the text has the end of its console. Nothing is left.
        """
        try:
            await asyncio.to_thread(self._make_directory)
            self.note.pid_mode = int(spec.config.security.namespaces.pid)
            self.write_note()
            held = spec.namespaces.fds if spec.namespaces is not None else {}
            network = await self._start(domain, held.get("network"), boot_s)
            await self._configure(spec, network)
        except BaseException as error:
            said = (
                f"console: {self.console_tail() or 'empty'}; relay: {_tail(self._log) or 'empty'}"
            )
            await asyncio.shield(self.end())
            await asyncio.shield(self.remove())
            if isinstance(error, (TimeoutError, PolypodError, OSError)):
                raise BackendError(
                    f"sandbox {self.id}: its VM did not come up: {str(error) or f'no answer in {boot_s:g} s'}; "
                    f"the end of its {said}"
                ) from error
            raise

    def _make_directory(self) -> None:
        self._places.directory.mkdir(mode=0o700, parents=True)

    def write_note(self) -> None:
        """Keep what is known; replaced as a whole."""
        new = self._places.note.with_suffix(".new")
        facts = {
            "sandbox": self.id,
            "disks": self.note.disks,
            "containers": self.note.containers,
            "stopped": self.note.stopped,
            "pid_mode": self.note.pid_mode,
        }
        new.write_text(json.dumps(facts))
        new.replace(self._places.note)

    async def probe(self, domain: Domain, boot_s: float) -> bool:
        """Tell whether a guest comes up at all with this domain's accelerator; nothing is left."""
        try:
            await asyncio.to_thread(self._make_directory)
            await self._start(domain, None, boot_s)
        except (TimeoutError, PolypodError, OSError) as error:
            _log.info("a guest with %s does not boot: %s", domain.accel, error)
            return False
        else:
            return True
        finally:
            await asyncio.shield(self.end())
            await asyncio.shield(self.remove())

    async def _start(self, domain: Domain, network: int | None, boot_s: float) -> Message:
        """Start relay and domain; return the pod's interface once the guest has greeted."""
        await self._start_relay(network)
        facts, fds = await self._link.ask("network")
        try:
            await self._hypervisor.create(domain, fds[0] if fds else -1, str(facts["mac"]))
        finally:
            for fd in fds:
                os.close(fd)
        async with asyncio.timeout(boot_s):
            # The relay was started in the machine's directory: a short path, however long that one's is.
            await self._link.ask("connect", timeout_s=boot_s, path=domain.channel.name)
        return facts

    async def _start_relay(self, network: int | None) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        log = os.open(self._log, flags, 0o600)
        try:
            source = "" if network is None else "fd:1"
            # Never on the host's own network: its eth0 would become the guest's.
            host = str(os.stat("/proc/self/ns/net").st_ino)
            words = [str(self._places.directory), *([host] if source else [])]
            plan = child.plan("relay", *words, log="fd:0", network=source)
            fds = [log] if network is None else [log, network]
            labels = {"kind": "relay", "sandbox": self.id}
            launched = await self._supervisor.execute(self._relay, plan, fds=fds, labels=labels)
            os.close(launched.pidfd)
        finally:
            os.close(log)
        await self._link.open(self._places.directory, wait=True)

    async def _configure(self, spec: SandboxSpec, network: Mapping[str, Any]) -> None:
        await self._link.call(
            {
                "op": "configure",
                "time_ns": time.time_ns(),
                "entropy": base64.b64encode(os.urandom(_ENTROPY_BYTES)).decode(),
                "hostname": spec.config.hostname,
                "files": await asyncio.to_thread(_pod_files, spec.directory),
                "network": dict(network),
                "kinds": pod_kinds(spec.config.security.namespaces.pid),
            }
        )

    # Running

    async def adopt(self) -> Mapping[str, Any]:
        """Connect to the relay that an earlier daemon left; return what the guest runs.

        Raises:
            PolypodError: there is nothing any more.
        """
        await self._link.open(self._places.directory, wait=False)
        state, _fds = await self._link.ask("state")
        if state["gone"] or not state["greeted"]:
            raise Unavailable(str(state["gone"]) or "its guest had not booted")
        return await self._link.call({"op": "list"})

    async def call(
        self, request: Mapping[str, object], streams: Mapping[str, int] | None = None
    ) -> Message:
        """Ask the guest."""
        if self.dead:
            raise Unavailable(f"sandbox {self.id}: {self.dead}")
        return await self._link.call(request, streams)

    async def attach(self, image: Image) -> None:
        """Put a container's image into the machine, unless it is there."""
        async with self._attaching:
            if image.serial in self.note.disks:
                return
            target = disk_target(len(self.note.disks))
            await self._hypervisor.attach(self.name, Disk(image.path, target, image.serial))
            self.note.disks[image.serial] = target
            self.write_note()

    def expect(self, process: str) -> None:
        """Note a container before the guest is asked for it."""
        self.note.containers.append(process)
        self.write_note()

    def forget(self, process: str) -> None:
        """Drop a container's note."""
        if process in self.note.containers:
            self.note.containers.remove(process)
            self.write_note()

    def console_tail(self) -> str:
        """Return the end of what the guest has written to its console."""
        return _tail(self._places.console)

    def _event(self, message: Message) -> None:
        if message["event"] == "gone":
            self._died(str(message["why"]))
        else:
            self._on_event(message)

    def _died(self, why: str) -> None:
        if not self.dead:
            self.dead = why
            self._on_dead(why)

    # Ending

    async def end(self) -> None:
        """End domain and relay; what is gone is fine."""
        if not self.dead:
            self.dead = "it was stopped"
        with contextlib.suppress(PolypodError, TimeoutError):
            async with asyncio.timeout(_QUIT_S):
                await self._link.ask("quit")
        self._link.close()
        await self._hypervisor.destroy(self.name)
        await self._end_relay()

    async def _end_relay(self) -> None:
        try:
            async with asyncio.timeout(_ENDS_S):
                await self._supervisor.wait(self._relay)
        except NotFound:
            return
        except TimeoutError:
            _log.warning("relay of sandbox %s does not leave: killed", self.id)
            with contextlib.suppress(NotFound):
                await self._supervisor.kill(self._relay, signals.SIGKILL)
                await self._supervisor.wait(self._relay)
        with contextlib.suppress(NotFound):
            await self._supervisor.forget(self._relay)

    async def remove(self) -> None:
        """Remove its directory."""
        await asyncio.to_thread(shutil.rmtree, self._places.directory, ignore_errors=True)
        if self._places.emulator_log is not None:
            self._places.emulator_log.unlink(missing_ok=True)

    def close(self) -> None:
        """Disconnect; it runs on."""
        self._link.close()


def _tail(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()[-_CONSOLE_TAIL:]
    except OSError:
        return ""


def read_note(path: Path) -> tuple[SandboxId, Note] | None:
    """Return a note; None if it was never finished."""
    try:
        facts = json.loads(path.read_text())
        note = Note(
            dict(facts["disks"]),
            list(facts["containers"]),
            bool(facts["stopped"]),
            int(facts["pid_mode"]),
        )
        return SandboxId(str(facts["sandbox"])), note
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _pod_files(directory: Path) -> dict[str, str]:
    found = {}
    for name in POD_FILES:
        with contextlib.suppress(FileNotFoundError):
            found[name] = (directory / name).read_text()
    return found
