"""Device access on cgroup v2: a BPF program attached to the cgroup, as v2 has no files for it.

Spec:
    linux/bpf.h (BPF_PROG_TYPE_CGROUP_DEVICE); man bpf(2).
"""

from __future__ import annotations

import ctypes
import os

from polypod.plugin.errors import BackendError

# asm/unistd_64.h, asm-generic/unistd.h
_SYS_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
_PROG_LOAD = 5
_PROG_ATTACH = 8
_TYPE_CGROUP_DEVICE = 15
_ATTACH_CGROUP_DEVICE = 6
_INSTRUCTION_BYTES = 8
_LICENSE = b"Apache-2.0"

_libc = ctypes.CDLL(None, use_errno=True)


class _Load(ctypes.Structure):
    """The head of union bpf_attr for BPF_PROG_LOAD; the kernel takes what is missing as 0."""

    _fields_ = (
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
        ("kern_version", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
    )


class _Attach(ctypes.Structure):
    _fields_ = (
        ("target_fd", ctypes.c_uint32),
        ("attach_bpf_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
    )


def attach(directory: str, program: bytes) -> None:
    """Let a program decide which devices the processes of a cgroup may open and make.

    Args:
        directory: of the cgroup, on a cgroup2 mount. The program lives as long as the cgroup.
        program: of `polypod.spec.cgroup_devices.device_program`.

    Raises:
        BackendError: the kernel refuses it; a container must not start without it (E23).
    """
    try:
        loaded = _load(program)
        try:
            _attach(directory, loaded)
        finally:
            os.close(loaded)
    except OSError as error:
        msg = f"cgroup {directory}: device rules cannot be applied: {error.strerror}"
        raise BackendError(msg) from error


def _load(program: bytes) -> int:
    instructions = ctypes.create_string_buffer(program, len(program))
    license_ = ctypes.create_string_buffer(_LICENSE)
    attributes = _Load(
        prog_type=_TYPE_CGROUP_DEVICE,
        insn_cnt=len(program) // _INSTRUCTION_BYTES,
        insns=ctypes.addressof(instructions),
        license=ctypes.addressof(license_),
    )
    return _bpf(_PROG_LOAD, attributes)


def _attach(directory: str, loaded: int) -> None:
    group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _bpf(_PROG_ATTACH, _Attach(group, loaded, _ATTACH_CGROUP_DEVICE, 0))
    finally:
        os.close(group)


def _bpf(command: int, attributes: ctypes.Structure) -> int:
    result = _libc.syscall(
        ctypes.c_long(_SYS_BPF),
        ctypes.c_int(command),
        ctypes.byref(attributes),
        ctypes.c_uint(ctypes.sizeof(attributes)),
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)
