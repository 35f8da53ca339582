"""A launch plan: an ordered list of operations, as data.

Pure code makes plans (`polypod.spec.compile`), the supervisor's child interprets them
(`polypod.supervisor.steps`), on the host and inside a guest alike. An operation says what is done to
what; a *source* names something that was opened elsewhere: ``fd:N`` is the N-th descriptor that came
with the launch, ``disk:SERIAL`` a block device of a guest.

This module is imported by the daemon and by the child: standard library only, and little of it.
"""

from __future__ import annotations

_TYPES: dict[str, type] = {"str": str, "int": int, "bool": bool, "list": list, "dict": dict}


class Operation:
    """One step. Subclasses list their fields in ``__slots__``; all of them travel as JSON."""

    __slots__: tuple[str, ...] = ()
    name = ""
    phrase = ""
    """How an error names it; fields in braces."""

    def __init__(self, **fields: object) -> None:
        for slot in self.__slots__:
            if slot not in fields:
                text = f"operation {self.name}: {slot} is missing"
                raise ValueError(text)
            setattr(self, slot, fields[slot])

    @classmethod
    def from_wire(cls, fields: dict[str, object]) -> Operation:
        """Read the fields; those that are unknown, missing or of another type are refused."""
        if len(fields) != len(cls.__slots__):
            text = f"operation {cls.name}: has fields {sorted(fields)}, not {sorted(cls.__slots__)}"
            raise ValueError(text)
        made = cls(**fields)
        for slot in cls.__slots__:
            wanted = _TYPES[cls.__annotations__[slot].partition("[")[0]]
            if type(fields[slot]) is not wanted:
                text = f"operation {cls.name}: {slot} must be {wanted.__name__}"
                raise ValueError(text)
        return made

    def to_wire(self) -> list[object]:
        """Return ``[name, {field: value}]``."""
        return [self.name, {slot: getattr(self, slot) for slot in self.__slots__}]

    def summary(self) -> str:
        """Name it in few words, for errors: no field that may hold a secret."""
        return self.phrase.format_map({slot: self._short(slot) for slot in self.__slots__})

    def describe(self) -> str:
        """Say in one line all that it does: for logs and golden tests."""
        shown = " ".join(f"{slot}={self._short(slot)}" for slot in self.__slots__)
        return f"{self.name} {shown}".rstrip()

    def __eq__(self, other: object) -> bool:  # type: ignore[explicit-override]
        return isinstance(other, Operation) and self.to_wire() == other.to_wire()

    def __repr__(self) -> str:  # type: ignore[explicit-override]
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
    phrase = "join namespaces"
    items: list[list[str]]
    kinds: list[str]
    pidfd: str


class EnterUserNamespace(Operation):
    """Become root of a user namespace, and go on in new namespaces that it owns.

    ``kinds`` are those to make. With ``pid`` among them another process goes on: the first of the new pid
    namespace; the launch is about that one from here on. What takes a right of the host comes before this.
    """

    __slots__ = ("kinds", "source")
    name = "enter-user-namespace"
    phrase = "enter the user namespace"
    source: str
    kinds: list[str]


class JoinCgroups(Operation):
    """Write "0" into each source: a ``tasks`` file of v1, a ``cgroup.procs`` of v2."""

    __slots__ = ("sources",)
    name = "join-cgroups"
    phrase = "join cgroups"
    sources: list[str]


class Unshare(Operation):
    """Make new namespaces late: the cgroup namespace must be made after joining the cgroup."""

    __slots__ = ("kinds",)
    name = "unshare"
    phrase = "make namespaces {kinds}"
    kinds: list[str]


class SetHostname(Operation):
    """Set host and domain name of a uts namespace of our own; ``""`` leaves one as it is."""

    __slots__ = ("domainname", "hostname")
    name = "set-hostname"
    phrase = "set host name {hostname}"
    hostname: str
    domainname: str


class AttachRoot(Operation):
    """Put a detached mount over the root; everything after resolves beneath it."""

    __slots__ = ("source",)
    name = "attach-root"
    phrase = "attach the root file system"
    source: str


class MountNew(Operation):
    """Mount a new file system instance on a path beneath the root, making the directory."""

    __slots__ = ("attributes", "fstype", "options", "target")
    name = "mount"
    phrase = "mount {fstype} on {target}"
    fstype: str
    target: str
    options: list[list[str | None]]
    attributes: int


class MountCgroups(Operation):
    """Show the cgroup v1 hierarchies below a tmpfs, one directory each.

    ``hierarchies`` is ``[[directory, [mount option, …], [link, …]], …]``; a link is a further name of
    controllers that share a hierarchy. With a cgroup namespace each shows the container's own part.
    """

    __slots__ = ("attributes", "hierarchies", "target")
    name = "mount-cgroups"
    phrase = "mount cgroups on {target}"
    target: str
    hierarchies: list[list[object]]
    attributes: int


class AttachMount(Operation):
    """Attach a detached mount on a path beneath the root, making directory or file."""

    __slots__ = ("is_directory", "source", "target")
    name = "attach-mount"
    phrase = "attach a volume on {target}"
    source: str
    target: str
    is_directory: bool


class MakeDevice(Operation):
    """Make a device node beneath the root. ``kind`` is c, b or p."""

    __slots__ = ("gid", "kind", "major", "minor", "mode", "path", "uid")
    name = "make-device"
    phrase = "make device {path}"
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
    phrase = "make link {path}"
    path: str
    target: str


class MakeDirectory(Operation):
    """Make a directory beneath the root, with its parents; one that exists is left."""

    __slots__ = ("mode", "path")
    name = "make-directory"
    phrase = "make directory {path}"
    path: str
    mode: int


class ChangeRoot(Operation):
    """Pivot into the attached root and drop the old one."""

    __slots__ = ()
    name = "change-root"
    phrase = "change the root"


class ReadOnlyPaths(Operation):
    """Make paths read-only where they exist."""

    __slots__ = ("paths",)
    name = "read-only-paths"
    phrase = "make paths read-only"
    paths: list[str]


class MaskPaths(Operation):
    """Hide paths where they exist: files by the null device, directories by an empty tmpfs."""

    __slots__ = ("paths",)
    name = "mask-paths"
    phrase = "mask paths"
    paths: list[str]


class ReadOnlyMounts(Operation):
    """Make mounts that had to be filled first read-only: ``paths`` are mount points, ``/`` the root."""

    __slots__ = ("paths",)
    name = "read-only-mounts"
    phrase = "make mounts read-only"
    paths: list[str]


class SetPropagation(Operation):
    """Set the propagation (``MS_SHARED`` …) of the root mount alone."""

    __slots__ = ("propagation",)
    name = "set-propagation"
    phrase = "set the root's propagation"
    propagation: int


class SetSysctls(Operation):
    """Write kernel parameters of namespaces of our own, through a procfs of our own."""

    __slots__ = ("values",)
    name = "set-sysctls"
    phrase = "set sysctls"
    values: dict[str, str]


class SetOomScore(Operation):
    """Set oom_score_adj; a value that needs a capability we lack is left if ``best_effort``."""

    __slots__ = ("best_effort", "value")
    name = "set-oom-score"
    phrase = "set oom_score_adj {value}"
    value: int
    best_effort: bool


class SetLimits(Operation):
    """Set rlimits: ``[[number, soft, hard], …]``, -1 = unlimited.

    With ``best_effort`` a hard limit above ours that we may not raise becomes ours.
    """

    __slots__ = ("best_effort", "limits")
    name = "set-limits"
    phrase = "set rlimits"
    limits: list[list[int]]
    best_effort: bool


class StartSession(Operation):
    """Become the leader of a new session, with a session keyring of our own."""

    __slots__ = ()
    name = "start-session"
    phrase = "start a session"


class OpenTerminal(Operation):
    """Open a pty in the container's devpts, send its master over the console socket, use it as stdio.

    ``width`` 0 leaves the size; with ``bind_console`` the pty is bound on ``/dev/console``.
    """

    __slots__ = ("bind_console", "console", "height", "uid", "width")
    name = "open-terminal"
    phrase = "open a terminal"
    console: str
    width: int
    height: int
    uid: int
    bind_console: bool


class UseStdio(Operation):
    """Make sources the standard streams; ``""`` is the null device.

    They are given to ``uid`` (-1: left), so that its ``/dev/stdout`` can be opened.
    """

    __slots__ = ("stderr", "stdin", "stdout", "uid")
    name = "use-stdio"
    phrase = "connect the standard streams"
    stdin: str
    stdout: str
    stderr: str
    uid: int


class CloseDescriptors(Operation):
    """Close all but the standard streams: no path may lead through what the launcher has open."""

    __slots__ = ()
    name = "close-descriptors"
    phrase = "close descriptors"


class SetUser(Operation):
    """Set user, groups and umask, keeping permitted capabilities."""

    __slots__ = ("gid", "groups", "uid", "umask")
    name = "set-user"
    phrase = "become user {uid}, group {gid}"
    uid: int
    gid: int
    groups: list[int]
    umask: int


class SetCapabilities(Operation):
    """Set the five sets, as bit masks; what the host cannot grant is left out."""

    __slots__ = ("ambient", "bounding", "effective", "inheritable", "permitted")
    name = "set-capabilities"
    phrase = "set capabilities"
    bounding: int
    effective: int
    permitted: int
    inheritable: int
    ambient: int


class SetNoNewPrivileges(Operation):
    """Give up gaining privileges by execve."""

    __slots__ = ()
    name = "set-no-new-privileges"
    phrase = "set no_new_privs"


class ChangeDirectory(Operation):
    """Change the working directory and prove that it lies inside the root."""

    __slots__ = ("path",)
    name = "change-directory"
    phrase = "change to working directory {path}"
    path: str


class LoadSeccomp(Operation):
    """Load a BPF program (base64 of struct sock_filter)."""

    __slots__ = ("flags", "program")
    name = "load-seccomp"
    phrase = "load the seccomp filter"
    program: str
    flags: int


class Execute(Operation):
    """Execute a program: always the last operation. Strings are in surrogateescape."""

    __slots__ = ("args", "env", "search")
    name = "execute"
    phrase = "execute"
    args: list[str]
    env: list[str]
    search: bool
    """Look args[0] up in the environment's PATH if it has no slash."""


OPERATIONS: dict[str, type[Operation]] = {
    kind.name: kind
    for kind in (
        JoinNamespaces,
        EnterUserNamespace,
        JoinCgroups,
        Unshare,
        SetHostname,
        AttachRoot,
        MountNew,
        MountCgroups,
        AttachMount,
        MakeDevice,
        MakeLink,
        MakeDirectory,
        ChangeRoot,
        ReadOnlyPaths,
        MaskPaths,
        ReadOnlyMounts,
        SetPropagation,
        SetSysctls,
        SetOomScore,
        SetLimits,
        StartSession,
        OpenTerminal,
        UseStdio,
        CloseDescriptors,
        SetUser,
        SetCapabilities,
        SetNoNewPrivileges,
        ChangeDirectory,
        LoadSeccomp,
        Execute,
    )
}


def _read_operation(item: list[object]) -> Operation:
    if len(item) != 2 or not isinstance(item[1], dict):
        text = f"launch plan: an operation is a name and its fields, not {str(item)[:80]}"
        raise ValueError(text)
    return OPERATIONS[str(item[0])].from_wire(item[1])


class Plan:
    """What becomes of a new process.

    ``clone_flags`` are the namespaces that it is born into; ``pid_namespace`` (a source: an nsfs
    descriptor or a pidfd, or ``""``) is the pid namespace it is born in, which no process can join
    later (`may_be_born_last` tells when); ``watched`` says that somebody in there may trace others
    (CAP_SYS_PTRACE); ``operations`` follow, the last one is `Execute`.
    """

    __slots__ = ("clone_flags", "execute", "operations", "pid_namespace", "watched")

    def __init__(
        self,
        clone_flags: int,
        operations: list[Operation],
        pid_namespace: str = "",
        *,
        watched: bool = True,
    ) -> None:
        if not operations or not isinstance(operations[-1], Execute):
            text = "launch plan: the last operation must be execute"
            raise ValueError(text)
        self.execute = operations[-1]
        self.clone_flags = clone_flags
        self.operations = operations
        self.pid_namespace = pid_namespace
        self.watched = watched

    def may_be_born_last(self, *, can_show_others: bool) -> bool:
        """Tell whether the process that executes is cloned into its pid namespace when all else is done.

        Where others are in it, they must not see how it comes to be. Who may not trace can do nothing with
        it anyhow: it is not dumpable before it executes. In a user namespace they may nothing with it
        before it executes, as it is the host's until then.

        Args:
            can_show_others: a procfs can show another pid namespace than that of who mounts it; else
                that one has to be in there before.
        """
        outside = (
            bool(self.pid_namespace)
            and self.watched
            and not any(isinstance(each, EnterUserNamespace) for each in self.operations)
        )
        return outside and (
            can_show_others
            or not any(
                isinstance(each, MountNew) and each.fstype == "proc" for each in self.operations
            )
        )

    @property
    def is_born_midway(self) -> bool:
        """Whether an operation goes on in another process than the one that is cloned first."""
        return any(
            isinstance(each, EnterUserNamespace) and "pid" in each.kinds for each in self.operations
        )

    def __eq__(self, other: object) -> bool:  # type: ignore[explicit-override]
        return isinstance(other, Plan) and self.to_wire() == other.to_wire()

    def to_wire(self) -> dict[str, object]:
        """Return JSON values."""
        return {
            "flags": self.clone_flags,
            "pid_namespace": self.pid_namespace,
            "watched": self.watched,
            "operations": [operation.to_wire() for operation in self.operations],
        }

    def to_wire_apart(self) -> tuple[dict[str, object], list[str]]:
        """Return JSON values without the environment, and that: it may hold secrets, so the child alone reads it."""
        wire = self.to_wire()
        bare = Execute(args=self.execute.args, env=[], search=self.execute.search)
        wire["operations"] = [each.to_wire() for each in (*self.operations[:-1], bare)]
        return wire, self.execute.env

    @classmethod
    def from_wire(cls, wire: object) -> Plan:
        """Read what `to_wire` made; ValueError on anything else."""
        try:
            flags = int(wire["flags"])  # type: ignore[index]
            pid_namespace = str(wire["pid_namespace"])  # type: ignore[index]
            watched = bool(wire["watched"])  # type: ignore[index]
            operations = [_read_operation(item) for item in wire["operations"]]  # type: ignore[index]
        except (KeyError, TypeError, AttributeError) as error:
            text = f"launch plan: not in its wire form ({error!r})"
            raise ValueError(text) from error
        return cls(flags, operations, pid_namespace, watched=watched)

    def describe(self) -> str:
        """Return one numbered line per operation."""
        lines = [f"clone flags {self.clone_flags:#x}"]
        if self.pid_namespace:
            lines[0] += f" in pid namespace {self.pid_namespace}"
        lines += [f"{index}. {one.describe()}" for index, one in enumerate(self.operations)]
        return "\n".join(lines)
