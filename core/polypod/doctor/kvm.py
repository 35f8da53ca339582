"""Whether virtual machines are accelerated: a guest of one instruction is really run.

A device node proves nothing: nested and paravirtual hosts have one that answers and in which stock guest
kernels die. Guests run without it too, by emulation, many times slower.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import struct
from pathlib import Path

from polypod.doctor.row import Row, State

_CREATE_VM, _CREATE_VCPU, _MMAP_SIZE, _RUN = 0xAE01, 0xAE41, 0xAE04, 0xAE80
_SET_MEMORY, _GET_SREGS, _SET_SREGS, _SET_REGS = 0x4020AE46, 0x8138AE83, 0x4138AE84, 0x4090AE82
_SREGS_BYTES, _REGS_BYTES = 312, 144
_EXIT_HLT = 5
_HLT = b"\xf4"
EMULATED = "virtual machines are emulated, many times slower"


def kvm(device: Path = Path("/dev/kvm"), modules: Path = Path("/sys/module")) -> Row:
    """KVM as a stock guest kernel would find it."""
    if not device.exists():
        return Row("KVM", State.ABSENT, f"no {device}: {EMULATED}")
    if (modules / "kvm_pvm").exists():
        return Row(
            "KVM", State.LIMITED, f"the PVM flavour, stock guest kernels die in it: {EMULATED}"
        )
    if platform.machine() != "x86_64":
        return Row("KVM", State.LIMITED, f"{device} exists; only x86-64 is tried here")
    try:
        reason = run_halt(device)
    except OSError as error:
        return Row("KVM", State.LIMITED, f"{device}: {error.strerror or error}: {EMULATED}")
    if reason != _EXIT_HLT:
        return Row(
            "KVM", State.LIMITED, f"a guest ended with exit {reason}, not with hlt: {EMULATED}"
        )
    return Row("KVM", State.OK, "a guest has run its instruction")


def run_halt(device: Path) -> int:
    """Run a guest that halts, in real mode at address 0; return KVM's exit reason."""
    with device.open("r+b", buffering=0) as system:
        machine = fcntl.ioctl(system, _CREATE_VM, 0)
        try:
            with mmap.mmap(-1, mmap.PAGESIZE) as memory:
                memory[:1] = _HLT
                _give_memory(machine, memory)
                size = fcntl.ioctl(system, _MMAP_SIZE, 0)
                return _run_processor(machine, size)
        finally:
            os.close(machine)


def _give_memory(machine: int, memory: mmap.mmap) -> None:
    view = ctypes.c_char.from_buffer(memory)
    region = struct.pack("IIQQQ", 0, 0, 0, len(memory), ctypes.addressof(view))
    del view
    fcntl.ioctl(machine, _SET_MEMORY, region)


def _run_processor(machine: int, size: int) -> int:
    processor = fcntl.ioctl(machine, _CREATE_VCPU, 0)
    try:
        with mmap.mmap(processor, size) as shared:
            special = bytearray(_SREGS_BYTES)
            fcntl.ioctl(processor, _GET_SREGS, special)
            struct.pack_into("Q", special, 0, 0)  # cs.base
            struct.pack_into("H", special, 12, 0)  # cs.selector
            fcntl.ioctl(processor, _SET_SREGS, bytes(special))
            # rip 0, and rflags with the bit that is always set
            fcntl.ioctl(processor, _SET_REGS, struct.pack("18Q", *[0] * 17, 2))
            fcntl.ioctl(processor, _RUN, 0)
            return int(struct.unpack_from("I", shared, 8)[0])
    finally:
        os.close(processor)
