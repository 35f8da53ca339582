"""A launch plan: an ordered list of operations, as data.

Pure code makes plans (`polypod.spec.compile`), the supervisor's child interprets them
(`polypod.supervisor.steps`), on the host and inside a guest alike. An operation says what is done to
what; a *source* names something that was opened elsewhere: ``fd:N`` is the N-th descriptor that came
with the launch, ``disk:SERIAL`` a block device of a guest.

This module is imported by the daemon and by the child: standard library only, and little of it.
"""

from __future__ import annotations


class Operation:
    """One step. Subclasses list their fields in ``__slots__``; all of them travel as JSON."""

    __slots__ = ()
    name = ""

    def __init__(self, **fields: object) -> None:
        for slot in self.__slots__:
            if slot not in fields:
                text = f"operation {self.name}: {slot} is missing"
                raise ValueError(text)
            setattr(self, slot, fields[slot])

    def to_wire(self) -> list[object]:
        """Return ``[name, {field: value}]``."""
        return [self.name, {slot: getattr(self, slot) for slot in self.__slots__}]

    def describe(self) -> str:
        """Say in one line what it does: for errors, logs and golden tests."""
        shown = " ".join(f"{slot}={self._short(slot)}" for slot in self.__slots__)
        return f"{self.name} {shown}".rstrip()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Operation) and self.to_wire() == other.to_wire()

    def __repr__(self) -> str:
        return f"<{self.describe()}>"

    def _short(self, slot: str) -> str:
        value = str(getattr(self, slot))
        return value if len(value) <= 80 else f"{value[:77]}..."


class JoinNamespaces(Operation):
    """Join namespaces: ``items`` is ``[[kind, source], …]``, ``pidfd`` a source or ``""``.

    With ``pidfd`` the kinds in ``kinds`` of that process are joined (exec).
    """

    __slots__ = ("items", "kinds", "pidfd")
    name = "join-namespaces"
    items: list[list[str]]
    kinds: list[str]
    pidfd: str


class JoinCgroups(Operation):
    """Write "0" into each source: a ``tasks`` file of v1, a ``cgroup.procs`` of v2."""

    __slots__ = ("sources",)
    name = "join-cgroups"
    sources: list[str]


class Unshare(Operation):
    """Make new namespaces late: the cgroup namespace must be made after joining the cgroup."""

    __slots__ = ("kinds",)
    name = "unshare"
    kinds: list[str]


class SetHostname(Operation):
    """Set the host name of a uts namespace of our own."""

    __slots__ = ("hostname",)
    name = "set-hostname"
    hostname: str


class AttachRoot(Operation):
    """Put a detached mount over the root; everything after resolves beneath it."""

    __slots__ = ("propagation", "source")
    name = "attach-root"
    source: str
    propagation: int


class MountNew(Operation):
    """Mount a new file system instance on a path beneath the root, making the directory."""

    __slots__ = ("attributes", "fstype", "options", "target")
    name = "mount"
    fstype: str
    target: str
    options: list[list[str | None]]
    attributes: int


class AttachMount(Operation):
    """Attach a detached mount on a path beneath the root, making directory or file."""

    __slots__ = ("is_directory", "source", "target")
    name = "attach-mount"
    source: str
    target: str
    is_directory: bool


class MakeDevice(Operation):
    """Make a device node beneath the root. ``kind`` is c, b or p."""

    __slots__ = ("gid", "kind", "major", "minor", "mode", "path", "uid")
    name = "make-device"
    path: str
    kind: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int


class MakeLink(Operation):
    """Make a symbolic link beneath the root; one that exists is left."""

    __slots__ = ("path", "target")
    name = "make-link"
    path: str
    target: str


class MakeDirectory(Operation):
    """Make a directory beneath the root, with its parents; one that exists is left."""

    __slots__ = ("mode", "path")
    name = "make-directory"
    path: str
    mode: int


class ChangeRoot(Operation):
    """Pivot into the attached root and drop the old one."""

    __slots__ = ()
    name = "change-root"


class ReadOnlyPaths(Operation):
    """Make paths read-only where they exist."""

    __slots__ = ("paths",)
    name = "read-only-paths"
    paths: list[str]


class MaskPaths(Operation):
    """Hide paths where they exist: files by the null device, directories by an empty tmpfs."""

    __slots__ = ("paths",)
    name = "mask-paths"
    paths: list[str]


class ReadOnlyRoot(Operation):
    """Make the root mount itself read-only."""

    __slots__ = ()
    name = "read-only-root"


class SetSysctls(Operation):
    """Write kernel parameters of namespaces of our own, through a procfs of our own."""

    __slots__ = ("values",)
    name = "set-sysctls"
    values: dict[str, str]


class SetOomScore(Operation):
    """Set oom_score_adj; a value that needs a capability we lack is left if ``best_effort``."""

    __slots__ = ("best_effort", "value")
    name = "set-oom-score"
    value: int
    best_effort: bool


class SetLimits(Operation):
    """Set rlimits: ``[[number, soft, hard], …]``, -1 = unlimited."""

    __slots__ = ("limits",)
    name = "set-limits"
    limits: list[list[int]]


class StartSession(Operation):
    """Become the leader of a new session."""

    __slots__ = ()
    name = "start-session"


class OpenTerminal(Operation):
    """Open a pty in the container's devpts, send its master over the console socket, use it as stdio.

    ``width`` 0 leaves the size; with ``bind_console`` the pty is bound on ``/dev/console``.
    """

    __slots__ = ("bind_console", "console", "height", "uid", "width")
    name = "open-terminal"
    console: str
    width: int
    height: int
    uid: int
    bind_console: bool


class UseStdio(Operation):
    """Make sources the standard streams; ``""`` is the null device."""

    __slots__ = ("stderr", "stdin", "stdout")
    name = "use-stdio"
    stdin: str
    stdout: str
    stderr: str


class SetUser(Operation):
    """Set user, groups and umask, keeping permitted capabilities."""

    __slots__ = ("gid", "groups", "uid", "umask")
    name = "set-user"
    uid: int
    gid: int
    groups: list[int]
    umask: int


class SetCapabilities(Operation):
    """Set the five sets, as bit masks; what the host cannot grant is left out."""

    __slots__ = ("ambient", "bounding", "effective", "inheritable", "permitted")
    name = "set-capabilities"
    bounding: int
    effective: int
    permitted: int
    inheritable: int
    ambient: int


class SetNoNewPrivileges(Operation):
    """Give up gaining privileges by execve."""

    __slots__ = ()
    name = "set-no-new-privileges"


class ChangeDirectory(Operation):
    """Change the working directory and prove that it lies inside the root."""

    __slots__ = ("path",)
    name = "change-directory"
    path: str


class LoadSeccomp(Operation):
    """Load a BPF program (base64 of struct sock_filter)."""

    __slots__ = ("flags", "program")
    name = "load-seccomp"
    program: str
    flags: int


class Execute(Operation):
    """Execute a program: always the last operation. Strings are in surrogateescape."""

    __slots__ = ("args", "env", "search")
    name = "execute"
    args: list[str]
    env: list[str]
    search: bool
    """Look args[0] up in the environment's PATH if it has no slash."""


OPERATIONS: dict[str, type[Operation]] = {
    kind.name: kind
    for kind in (
        JoinNamespaces,
        JoinCgroups,
        Unshare,
        SetHostname,
        AttachRoot,
        MountNew,
        AttachMount,
        MakeDevice,
        MakeLink,
        MakeDirectory,
        ChangeRoot,
        ReadOnlyPaths,
        MaskPaths,
        ReadOnlyRoot,
        SetSysctls,
        SetOomScore,
        SetLimits,
        StartSession,
        OpenTerminal,
        UseStdio,
        SetUser,
        SetCapabilities,
        SetNoNewPrivileges,
        ChangeDirectory,
        LoadSeccomp,
        Execute,
    )
}


class Plan:
    """Clone flags for the new process, then its operations; the last one is `Execute`."""

    __slots__ = ("clone_flags", "operations")

    def __init__(self, clone_flags: int, operations: list[Operation]) -> None:
        if not operations or operations[-1].name != Execute.name:
            text = "launch plan: the last operation must be execute"
            raise ValueError(text)
        self.clone_flags = clone_flags
        self.operations = operations

    def to_wire(self) -> dict[str, object]:
        """Return JSON values."""
        return {
            "flags": self.clone_flags,
            "operations": [operation.to_wire() for operation in self.operations],
        }

    @classmethod
    def from_wire(cls, wire: object) -> Plan:
        """Read what `to_wire` made; ValueError on anything else."""
        try:
            flags = int(wire["flags"])  # type: ignore[index]
            operations = [
                OPERATIONS[name](**fields)
                for name, fields in wire["operations"]  # type: ignore[index]
            ]
        except (KeyError, TypeError) as error:
            text = f"launch plan: not in its wire form ({error!r})"
            raise ValueError(text) from error
        return cls(flags, operations)

    def describe(self) -> str:
        """Return one numbered line per operation."""
        lines = [f"clone flags {self.clone_flags:#x}"]
        lines += [f"{index}. {one.describe()}" for index, one in enumerate(self.operations)]
        return "\n".join(lines)
