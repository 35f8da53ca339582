"""The life of a cloned child: run a plan's operations, pass the gate, execute.

Everything that can be made before the clone was made before it. A failure is written into a page that
the supervisor shares with us; then the child is gone.
"""

from __future__ import annotations

import mmap
import os
import struct

from polypod.plan import operations
from polypod.plan.operations import Operation, Plan
from polypod.supervisor.steps import (
    cgroups,
    devices,
    filters,
    identity,
    limits,
    masks,
    mounting,
    namespaces,
    process,
    rootfs,
    stdio,
    users,
)
from polypod.supervisor.steps.context import Context

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    Executor = Callable[[Any, Context], None]

_HEADER = struct.Struct("=iiiI")
_TEXT_LIMIT = 3000
_RUNNING, _EXECUTING, _FAILED = 0, 1, 2

EXECUTORS: dict[type[Operation], Executor] = {
    operations.JoinNamespaces: namespaces.join_namespaces,
    operations.EnterUserNamespace: users.enter_user_namespace,
    operations.JoinCgroups: cgroups.join_cgroups,
    operations.Unshare: namespaces.unshare,
    operations.SetHostname: namespaces.set_hostname,
    operations.AttachRoot: rootfs.attach_root,
    operations.MountNew: mounting.mount_new,
    operations.MountCgroups: cgroups.mount_cgroups,
    operations.AttachMount: mounting.attach_mount,
    operations.MakeDevice: devices.make_device,
    operations.MakeLink: devices.make_link,
    operations.MakeDirectory: devices.make_directory,
    operations.ChangeRoot: rootfs.change_root,
    operations.ReadOnlyPaths: masks.read_only_paths,
    operations.MaskPaths: masks.mask_paths,
    operations.ReadOnlyMounts: rootfs.read_only_mounts,
    operations.SetPropagation: rootfs.set_propagation,
    operations.SetSysctls: namespaces.set_sysctls,
    operations.SetOomScore: limits.set_oom_score,
    operations.SetLimits: limits.set_limits,
    operations.StartSession: process.start_session,
    operations.OpenTerminal: stdio.open_terminal,
    operations.UseStdio: stdio.use_stdio,
    operations.CloseDescriptors: process.close_descriptors,
    operations.SetUser: identity.set_user,
    operations.SetCapabilities: identity.set_capabilities,
    operations.SetNoNewPrivileges: identity.set_no_new_privileges,
    operations.ChangeDirectory: process.change_directory,
    operations.LoadSeccomp: filters.load_seccomp,
    operations.Execute: process.execute,
}
"""What each operation does: a unit test holds this table and `polypod.plan.operations` together."""


class Report:
    """A page shared by supervisor and child: how far it got, and why it stopped.

    A keepable one has a descriptor, so that it can be handed to another supervisor.
    """

    __slots__ = ("fd", "page")

    def __init__(self, *, keepable: bool = False, fd: int = -1) -> None:
        if keepable:
            fd = os.memfd_create("polypod-report", os.MFD_CLOEXEC)
            os.ftruncate(fd, mmap.PAGESIZE)
        self.fd = fd
        self.page = mmap.mmap(fd, mmap.PAGESIZE)

    def step(self, index: int) -> None:
        """The child is at this operation."""
        _HEADER.pack_into(self.page, 0, _RUNNING, index, 0, 0)

    def executing(self, index: int) -> None:
        """Nothing but execve is left."""
        _HEADER.pack_into(self.page, 0, _EXECUTING, index, 0, 0)

    def fail(self, plan: Plan, index: int, number: int, said: str) -> None:
        """An operation failed; this needs no system call, seccomp may be loaded."""
        what = plan.operations[index]
        if not isinstance(what, operations.Execute):
            said = f"operation {index}: {what.summary()}: {said}"
        self._write(index, number, said)

    def fail_early(self, number: int, said: str) -> None:
        """The child failed before its first operation."""
        self._write(0, number, f"prepare the process: {said}")

    def _write(self, index: int, number: int, said: str) -> None:
        raw = said.encode(errors="replace")[:_TEXT_LIMIT]
        self.page[_HEADER.size : _HEADER.size + len(raw)] = raw
        _HEADER.pack_into(self.page, 0, _FAILED, index, number, len(raw))

    def failure(self, plan: Plan | None) -> OSError | None:
        """Return why the child did not execute, in the supervisor; None if it did."""
        state, index, number, length = _HEADER.unpack_from(self.page, 0)
        if state == _EXECUTING:
            return None
        if state == _RUNNING:
            name = plan.operations[index].summary() if plan is not None else "unknown"
            return OSError(
                0, f"operation {index}: {name}: the process was killed while it was set up"
            )
        said = bytes(self.page[_HEADER.size : _HEADER.size + length])
        return OSError(number, said.decode(errors="replace"))

    def close(self) -> None:
        """Give the page back."""
        self.page.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def run(plan: Plan, context: Context, report: Report, gate: Callable[[], None]) -> NoReturn:
    """Run the plan in the child; never returns.

    Args:
        plan: what to do.
        context: descriptors, and what was prepared before the clone.
        report: the shared page.
        gate: called before the last step, returns when we may execute.
    """
    index = 0
    try:
        last = len(plan.operations) - 1
        # After seccomp nothing but execve may be asked of the kernel (E24).
        sealed = last > 0 and isinstance(plan.operations[last - 1], operations.LoadSeccomp)
        passage = last - 1 if sealed else last
        for index, operation in enumerate(plan.operations):
            if index == passage:
                gate()
            if index == last:
                report.executing(index)
            else:
                report.step(index)
            EXECUTORS[type(operation)](operation, context)
    except OSError as error:
        report.fail(plan, index, error.errno or 0, error.strerror or str(error))
    except BaseException as error:
        report.fail(plan, index, 0, f"{type(error).__name__}: {error}")
    os._exit(127)
