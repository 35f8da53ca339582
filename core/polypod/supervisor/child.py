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
from polypod.supervisor.steps import devices, identity, namespaces, rootfs, stdio
from polypod.supervisor.steps.context import Context

_HEADER = struct.Struct("=iiiI")
_TEXT_LIMIT = 3000
_RUNNING, _EXECUTING, _FAILED = 0, 1, 2

EXECUTORS = {
    operations.JoinNamespaces: namespaces.join_namespaces,
    operations.JoinCgroups: namespaces.join_cgroups,
    operations.Unshare: namespaces.unshare,
    operations.SetHostname: namespaces.set_hostname,
    operations.SetSysctls: namespaces.set_sysctls,
    operations.SetOomScore: namespaces.set_oom_score,
    operations.AttachRoot: rootfs.attach_root,
    operations.MountNew: rootfs.mount_new,
    operations.AttachMount: rootfs.attach_mount,
    operations.ChangeRoot: rootfs.change_root,
    operations.ReadOnlyPaths: rootfs.read_only_paths,
    operations.MaskPaths: rootfs.mask_paths,
    operations.ReadOnlyRoot: rootfs.read_only_root,
    operations.MakeDevice: devices.make_device,
    operations.MakeLink: devices.make_link,
    operations.MakeDirectory: devices.make_directory,
    operations.SetUser: identity.set_user,
    operations.SetCapabilities: identity.set_capabilities,
    operations.SetNoNewPrivileges: identity.set_no_new_privileges,
    operations.LoadSeccomp: identity.load_seccomp,
    operations.SetLimits: identity.set_limits,
    operations.StartSession: stdio.start_session,
    operations.OpenTerminal: stdio.open_terminal,
    operations.UseStdio: stdio.use_stdio,
    operations.ChangeDirectory: stdio.change_directory,
    operations.Execute: stdio.execute,
}


class Report:
    """A page shared by supervisor and child: how far it got, and why it stopped."""

    __slots__ = ("page",)

    def __init__(self) -> None:
        self.page = mmap.mmap(-1, mmap.PAGESIZE)

    def step(self, index: int) -> None:
        """The child is at this operation."""
        _HEADER.pack_into(self.page, 0, _RUNNING, index, 0, 0)

    def executing(self, index: int) -> None:
        """Nothing but execve is left."""
        _HEADER.pack_into(self.page, 0, _EXECUTING, index, 0, 0)

    def fail(self, index: int, number: int, text: str) -> None:
        """The operation failed."""
        raw = text.encode(errors="replace")[:_TEXT_LIMIT]
        _HEADER.pack_into(self.page, 0, _FAILED, index, number, len(raw))
        self.page[_HEADER.size : _HEADER.size + len(raw)] = raw

    def failure(self, plan: Plan) -> OSError | None:
        """Return why the child did not execute, in the supervisor; None if it did."""
        state, index, number, length = _HEADER.unpack_from(self.page, 0)
        if state == _EXECUTING:
            return None
        raw = bytes(self.page[_HEADER.size : _HEADER.size + length])
        what = plan.operations[min(index, len(plan.operations) - 1)]
        if state == _RUNNING:
            reason = "the process was killed while it was set up"
            return OSError(0, f"operation {index} ({what.describe()}): {reason}")
        said = raw.decode(errors="replace")
        if isinstance(what, operations.Execute):
            return OSError(number, said)
        return OSError(number, f"operation {index} ({what.describe()}): {said}")

    def close(self) -> None:
        """Give the page back."""
        self.page.close()


def run(plan: Plan, context: Context, report: Report, gate) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Run the plan in the child; never returns.

    Args:
        plan: what to do.
        context: descriptors.
        report: the shared page.
        gate: called before the first operation that cannot be undone, returns when we may execute.
    """
    index = 0
    try:
        last = len(plan.operations) - 1
        # After seccomp nothing but execve may be asked of the kernel (E24).
        sealed = isinstance(plan.operations[last - 1], operations.LoadSeccomp)
        passage = last - 1 if sealed and last else last
        for index, operation in enumerate(plan.operations):
            if index == passage:
                gate()
            if index == last:
                report.executing(index)
            else:
                report.step(index)
            EXECUTORS[type(operation)](operation, context)  # type: ignore[operator]
    except OSError as error:
        report.fail(index, error.errno or 0, error.strerror or str(error))
    except BaseException as error:
        report.fail(index, 0, f"{type(error).__name__}: {error}")
    os._exit(127)


def known(operation: Operation) -> bool:
    """Tell whether an operation has an executor."""
    return type(operation) in EXECUTORS
