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

from polypod.plan import channel
from polypod.plugin import (
    BackendError,
    HoldsDescriptors,
    NotFound,
    PolypodError,
    ProcessId,
    SandboxId,
    SandboxSpec,
    Supervisor,
    Unavailable,
    Unsupported,
)
from polypod_vm import child, held
from polypod_vm.domain import Disk, Domain, disk_target
from polypod_vm.hypervisor import Hypervisor
from polypod_vm.launching import POD_FILES, Image, pod_kinds, pod_sysctls
from polypod_vm.link import Lost, Message, RelayLink
from polypod_vm.placing import PodCgroups

_log = logging.getLogger(__name__)
_CONSOLE_TAIL: Final = 2000
_ENTROPY_BYTES: Final = 64
_ENDS_S: Final = 5.0
_QUIT_S: Final = 2.0
_CHANNEL: Final = "channel"
"""In the machine's directory, which is the relay's own: a short path, however long that one's is."""
_AGREES_S: Final = 30.0
"""How long a new relay and its guest may take to agree."""
_RELAYS_MAX: Final = 20
_PAUSE_S, _PAUSE_MAX_S = 0.05, 1.0
"""Between relays that end as soon as they begin: one more each time."""


@dataclass(slots=True)
class Note:
    """What a restarted daemon has to know of a machine; one small file."""

    disks: dict[str, str] = field(default_factory=dict)
    """Serial → target, of the disks that were attached."""
    containers: list[str] = field(default_factory=list)
    """Ids: what else a guest tells of is not believed."""
    stopped: bool = False
    pid_mode: int = 0
    booted: bool = False
    """Its guest was told what it is."""
    cgroup: str = ""
    """On the host, of what runs the machine."""


@dataclass(frozen=True, slots=True)
class Places:
    """The paths of one machine."""

    directory: Path
    """Ours: socket of the relay, its log, the note."""
    inside: Path
    """The same directory as libvirt and QEMU name it."""

    emulator_pid: Path
    """Written by libvirt: who QEMU is."""
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
        cgroups: PodCgroups,
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
        self._cgroups = cgroups
        self._on_event = on_event
        self._on_dead = on_dead
        self._log = places.directory / "relay.log"
        self._relay = ProcessId(f"relay-{sandbox_id}")
        self._keeper = (
            supervisor.keeper_directory if isinstance(supervisor, HoldsDescriptors) else None
        )
        self._link = RelayLink(self._event, self._relay_lost)
        self._reviving: asyncio.Task[None] | None = None
        self._starting = False
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
            self.note.cgroup = spec.cgroup
            self.write_note()
            await asyncio.to_thread(self._cgroups.create, spec.cgroup)
            fds = spec.namespaces.fds if spec.namespaces is not None else {}
            network = await self._start(domain, fds.get("network"), boot_s)
            await self._configure(spec, network)
            self.note.booted = True
            self.write_note()
        except BaseException as error:
            said = (
                f"console: {self.console_tail() or 'empty'}; relay: {_tail(self._log) or 'empty'}"
            )
            await asyncio.shield(self.end())
            await asyncio.shield(self.remove())
            if isinstance(error, Unsupported):
                raise Unsupported(f"sandbox {self.id}: {error}") from error
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
            "booted": self.note.booted,
            "cgroup": self.note.cgroup,
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
        await self._start_relay(network, splices=network is not None)
        facts, fds = await self._link.ask("network")
        try:
            tap = fds[0] if fds else -1
            await self._hypervisor.create(domain, tap, str(facts["mac"]), self._place)
        finally:
            for fd in fds:
                os.close(fd)
        async with asyncio.timeout(boot_s):
            await self._link.ask("connect", timeout_s=boot_s, path=_CHANNEL)
        return facts

    def _place(self) -> None:
        """Put QEMU into the pod's cgroup, before anything of the guest has run."""
        if self.note.cgroup:
            self._cgroups.add(self.note.cgroup, self._places.emulator_pid)

    async def _start_relay(self, network: int | None, *, splices: bool) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        owned = [os.open(self._log, flags, 0o600)]
        try:
            if self.note.cgroup:
                owned += self._cgroups.join_descriptors(self.note.cgroup)
            joined = [f"fd:{number}" for number in range(1, len(owned))]
            fds = [*owned, *([] if network is None else [network])]
            source = "" if network is None else f"fd:{len(owned)}"
            # Never on the host's own network: its eth0 would become the guest's.
            host = str(os.stat("/proc/self/ns/net").st_ino) if splices else ""
            keeper = str(self._keeper) if self._keeper is not None else ""
            words = [str(self._places.directory), self.id, keeper, host]
            plan = child.plan("relay", *words, log="fd:0", network=source, cgroups=joined)
            labels = {"kind": "relay", "sandbox": self.id}
            launched = await self._supervisor.execute(self._relay, plan, fds=fds, labels=labels)
            os.close(launched.pidfd)
        finally:
            channel.close_all(owned)
        await self._meet_relay()

    async def _meet_relay(self) -> None:
        """Connect to a relay that is starting.

        Raises:
            Lost: it has ended instead.
        """
        meeting = asyncio.ensure_future(self._link.open(self._places.directory, wait=True))
        ended = asyncio.ensure_future(self._supervisor.wait(self._relay))
        try:
            await asyncio.wait({meeting, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not meeting.done():
                raise Lost(f"it ended at once: {_tail(self._log) or 'it said nothing'}")
            await meeting
        finally:
            for task in (meeting, ended):
                task.cancel()
            await asyncio.gather(meeting, ended, return_exceptions=True)

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
                "sysctls": pod_sysctls(spec.config),
            }
        )

    # Running

    async def adopt(self) -> Mapping[str, Any]:
        """Connect to the relay that an earlier daemon left, or start another one; return what the guest runs.

        Raises:
            PolypodError: there is nothing any more.
        """
        if not self.note.booted:
            raise Unavailable("its guest had not booted")
        try:
            await self._link.open(self._places.directory, wait=False)
            await self._link.ask("connect", timeout_s=_AGREES_S, path=_CHANNEL)
        except Lost:
            # Killed just now: another one is being started, and what follows waits for it.
            _log.info("sandbox %s: its relay ended while it was asked", self.id)
        except Unavailable:
            if self._link.is_open:
                raise
            await self._start_relay_again()
        return await self._link.call({"op": "list"})

    # The relay

    def _relay_lost(self) -> bool:
        """It was killed: the machine goes on, and so do its streams as soon as there is another one."""
        if self.dead or not self.note.booted or self._keeper is None:
            self._died("its relay was killed")
            return False
        if not self._starting and (self._reviving is None or self._reviving.done()):
            self._reviving = asyncio.get_running_loop().create_task(self._revive())
        return True

    async def _revive(self) -> None:
        try:
            await self._start_relay_again()
        except (PolypodError, OSError, TimeoutError) as error:
            if not self.dead:
                self._died(str(error) or "its relay does not come back")
            self._link.give_up()

    async def _start_relay_again(self) -> None:
        """Start another relay, and again if that one is killed, too.

        Raises:
            PolypodError: the VM has ended, or relays end as soon as they begin.
        """
        self._starting = True
        try:
            await self._try_relays()
        finally:
            self._starting = False

    async def _try_relays(self) -> None:
        for attempt in range(_RELAYS_MAX):
            await asyncio.sleep(min(_PAUSE_S * attempt, _PAUSE_MAX_S))
            await self._end_relay()
            pinned = await self._supervisor.namespaces(self.id)
            fds = dict(pinned.fds) if pinned is not None else {}
            try:
                await self._start_relay(fds.get("network"), splices=False)
                await self._link.ask("connect", timeout_s=_AGREES_S, path=_CHANNEL)
            except Lost as error:
                _log.info("sandbox %s: another relay ended at once: %s", self.id, error)
                continue
            finally:
                netlink = pinned.netlink if pinned is not None else None
                channel.close_all([*fds.values(), *([] if netlink is None else [netlink])])
            _log.warning("sandbox %s: its relay had ended; another one goes on", self.id)
            self._link.recovered()
            return
        raise Unavailable(f"{_RELAYS_MAX} relays ended as soon as they had begun")

    # Asking

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
        if self._reviving is not None:
            self._reviving.cancel()
        self._link.give_up()
        with contextlib.suppress(PolypodError, TimeoutError):
            async with asyncio.timeout(_QUIT_S):
                await self._link.ask("quit")
        self._link.close()
        await self._hypervisor.destroy(self.name)
        await self._end_relay()
        if self._keeper is not None:
            await asyncio.to_thread(held.release, self._keeper, self.id)

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
        """Remove its directory and its cgroup."""
        if self.note.cgroup:
            await asyncio.to_thread(self._cgroups.end, self.note.cgroup)
        await asyncio.to_thread(shutil.rmtree, self._places.directory, ignore_errors=True)
        if self._places.emulator_log is not None:
            self._places.emulator_log.unlink(missing_ok=True)

    def close(self) -> None:
        """Disconnect; it runs on."""
        if self._reviving is not None:
            self._reviving.cancel()
        self._link.give_up()
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
            bool(facts["booted"]),
            str(facts["cgroup"]),
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
