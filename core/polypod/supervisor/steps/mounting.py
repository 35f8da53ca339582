"""Mounts beneath the root: new file systems, and what the daemon opened."""

from __future__ import annotations

import errno
import os

from polypod.plan import operations
from polypod.supervisor.kernel import files, mounts
from polypod.supervisor.steps.context import Context, is_directory

_PROC = "/proc"


def mount_new(op: operations.MountNew, context: Context) -> None:
    """Mount a new instance."""
    options: list[tuple[str, str | int | None]] = [(str(key), value) for key, value in op.options]
    if op.fstype == "proc" and context.is_born_last:
        _show_children(options, context)
    made = mounts.new_mount(op.fstype, options, op.attributes)
    try:
        target = _target_of(op, context)
        try:
            mounts.move_mount(made, target)
        finally:
            os.close(target)
        if op.fstype == "proc":
            context.proc_devices.add(os.fstat(made).st_dev)
    finally:
        os.close(made)


def _show_children(options: list[tuple[str, str | int | None]], context: Context) -> None:
    """We are not in the pid namespace that is to be shown, our child will be; closed with all others."""
    name = "self/ns/pid_for_children"
    pids = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=context.proc)
    options.append(("pidns", pids))


_KERNEL_FILESYSTEMS = ("proc", "sysfs")


def _target_of(op: operations.MountNew, context: Context) -> int:
    if op.fstype not in _KERNEL_FILESYSTEMS:
        return context.make_directory(op.target)
    # What is mounted here is trusted later, so no link of an image may choose the place (E3).
    resolve = files.RESOLVE_IN_ROOT | files.RESOLVE_NO_SYMLINKS
    flags = os.O_PATH | os.O_DIRECTORY
    try:
        return files.openat2(context.root, op.target, flags, 0, resolve)
    except FileNotFoundError:
        os.close(context.make_directory(op.target))
        return files.openat2(context.root, op.target, flags, 0, resolve)


def attach_mount(op: operations.AttachMount, context: Context) -> None:
    """Attach what the daemon opened."""
    make = context.make_directory if op.is_directory else context.make_file
    try:
        target = make(op.target)
    except NotADirectoryError as error:
        raise _mismatch(op) from error
    try:
        if is_directory(target) is not op.is_directory:
            raise _mismatch(op)
        _check_target(op.target, target, context)
        mounts.move_mount(context.source(op.source), target)
    finally:
        os.close(target)


def _mismatch(op: operations.AttachMount) -> OSError:
    what = "a directory" if op.is_directory else "a file"
    return OSError(errno.ENOTDIR, f"{op.target}: the volume is {what}, the target is not")


def _check_target(path: str, target: int, context: Context) -> None:
    """A link of the image must not lead a volume into /proc; the plan's own paths are vetted (E3)."""
    if path == _PROC or path.startswith(f"{_PROC}/"):
        return
    if os.fstat(target).st_dev in context.proc_devices:
        raise OSError(errno.EACCES, f"{path}: leads into /proc by a link of the image")
