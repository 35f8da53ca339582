"""A seccomp profile compiled to the program that the kernel runs on every system call.

What a profile means here, where the specification leaves it open:

* **Other ABIs are killed.** The program judges the machine's own ABI. A call of another one (i386 through
  ``int 0x80`` and 32-bit programs, x32 on x86_64, 32-bit ARM on aarch64) kills the process with SIGSYS,
  also if the profile lists that architecture: numbers mean something else there, and 32-bit entries
  are where filters were got around. A killed process says why in the kernel's log; ENOSYS from every
  call would not.
* **A call without conditions wins** over the same call with conditions, and the first one over later
  ones; a rule with the default's own action is left out before that. libseccomp does the same.
* **Of several rules with conditions the most restrictive that applies wins**, in the kernel's order of
  actions, so that the order of the profile does not matter.
* **Bits of valueTwo outside the mask of MASKED_EQ do not count**, as in libseccomp.
* **Conditions on the same argument of one rule are alternatives**, as in runc and crun.
* **Calls newer than the profile give ENOSYS** where the default is an errno: numbers above the highest
  that the profile names. Its author cannot have meant them, and C libraries fall back on ENOSYS only.
  runc does the same.
* Names that the machine does not have are skipped, as by libseccomp.

The program is small (merged ranges below a binary tree) and made of the few instructions that the
kernel can evaluate beforehand: calls that are allowed without a look at their arguments cost nothing.

Spec:
    runtime-spec config-linux.md, seccomp; Documentation/userspace-api/seccomp_filter.rst; man seccomp(2).
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Final

from polypod.plugin.errors import InvalidArgument, Unsupported
from polypod.plugin.oci import Seccomp
from polypod.spec.seccomp_bpf import (
    EQUAL,
    GREATER,
    GREATER_EQUAL,
    MAX_INSTRUCTIONS,
    Assembler,
)
from polypod.spec.seccomp_numbers import syscall_numbers
from polypod.spec.seccomp_rules import KILL_PROCESS, Branch, Condition, Decision, number_ranges

# linux/audit.h, AUDIT_ARCH_…
_ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Offsets in struct seccomp_data; the words of an argument lie low, high on both machines.
_NR: Final = 0
_ARCH: Final = 4
_ARGS: Final = 16
# arch/x86/include/uapi/asm/unistd.h, __X32_SYSCALL_BIT; -1 is what a tracer sets to skip a call.
_X32: Final = 0x4000_0000
_SKIPPED: Final = 0xFFFF_FFFF
_LOW: Final = 0xFFFF_FFFF
_FLAGS: Final = {
    "SECCOMP_FILTER_FLAG_TSYNC": 1 << 0,
    "SECCOMP_FILTER_FLAG_LOG": 1 << 1,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 1 << 2,
}


def compile_filter(profile: Seccomp, machine: str | None = None) -> bytes:
    """Return the program as an array of struct sock_filter, little endian.

    Args:
        profile: what is allowed.
        machine: as ``uname -m`` names it; None = this host's.

    Raises:
        InvalidArgument: an action, operator or number of the profile is unknown or out of range, or the
            program is longer than the kernel takes.
        Unsupported: the machine, or ``SCMP_ACT_NOTIFY``.
    """
    return _compiled(profile, os.uname().machine if machine is None else machine)


def filter_flags(profile: Seccomp) -> int:
    """Return the flags for seccomp(2).

    Raises:
        InvalidArgument: a flag is unknown.
        Unsupported: a flag of notification.
    """
    flags = 0
    for name in profile.flags:
        if name == "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV":
            raise Unsupported(
                f"seccomp.flags {name}: it is for a notification listener, which this version has not"
            )
        if name not in _FLAGS:
            raise InvalidArgument(
                f"seccomp.flags {name!r}: unknown; known are {', '.join(sorted(_FLAGS))}"
            )
        flags |= _FLAGS[name]
    return flags


@lru_cache(maxsize=128)
def _compiled(profile: Seccomp, machine: str) -> bytes:
    ranges = number_ranges(profile, syscall_numbers(machine))
    if machine == "x86_64":
        last = ranges[-1][1]
        ranges += [(_X32, (Branch((), KILL_PROCESS),)), (_SKIPPED, last)]
    program = _Program()
    tree = program.tree(ranges)
    native = program.out.load(_NR, tree)
    foreign = program.out.give(KILL_PROCESS)
    program.out.load(_ARCH, program.out.branch(EQUAL, _ARCHITECTURES[machine], native, foreign))
    if len(program.out) > MAX_INSTRUCTIONS:
        raise InvalidArgument(
            f"seccomp: the profile takes {len(program.out)} instructions, the kernel takes at most "
            f"{MAX_INSTRUCTIONS}; give it fewer argument rules"
        )
    return program.out.program()


class _Program:
    """One program under construction; equal decisions share their instructions."""

    def __init__(self) -> None:
        self.out = Assembler()
        self._decisions: dict[Decision, int] = {}

    def tree(self, ranges: list[tuple[int, Decision]]) -> int:
        """Return the label of a binary search over ranges of numbers; the accumulator holds the number."""
        if len(ranges) == 1:
            return self._decide(ranges[0][1])
        middle = len(ranges) // 2
        above = self.tree(ranges[middle:])
        below = self.tree(ranges[:middle])
        return self.out.branch(GREATER_EQUAL, ranges[middle][0], above, below)

    def _decide(self, decision: Decision) -> int:
        if len(decision) == 1:
            return self.out.give(decision[0].action)
        if decision not in self._decisions:
            otherwise = self.out.give(decision[-1].action)
            for branch in reversed(decision[:-1]):
                then = self.out.give(branch.action)
                for condition in reversed(branch.conditions):
                    then = self._compare(condition, then, otherwise)
                otherwise = then
            self._decisions[decision] = otherwise
        return self._decisions[decision]

    def _compare(self, condition: Condition, true: int, false: int) -> int:
        """Return the label of a comparison, each 64-bit operator as two halves."""
        value = condition.value
        match condition.operator:
            case "EQ":
                return self._equal(condition.argument, value, true, false)
            case "NE":
                return self._equal(condition.argument, value, false, true)
            case "GT":
                return self._ordered(condition.argument, GREATER, value, true, false)
            case "LE":
                return self._ordered(condition.argument, GREATER, value, false, true)
            case "GE":
                return self._ordered(condition.argument, GREATER_EQUAL, value, true, false)
            case "LT":
                return self._ordered(condition.argument, GREATER_EQUAL, value, false, true)
            case _:
                return self._masked(condition, true, false)

    def _equal(self, argument: int, value: int, true: int, false: int) -> int:
        low = self.out.branch(EQUAL, value & _LOW, true, false)
        low = self.out.load(_low(argument), low)
        high = self.out.branch(EQUAL, value >> 32, low, false)
        return self.out.load(_high(argument), high)

    def _ordered(self, argument: int, test: int, value: int, true: int, false: int) -> int:
        """``test`` holds if the high half is greater, or equal and it holds for the low half."""
        low = self.out.branch(test, value & _LOW, true, false)
        low = self.out.load(_low(argument), low)
        equal = self.out.branch(EQUAL, value >> 32, low, false)
        high = self.out.branch(GREATER, value >> 32, true, equal)
        return self.out.load(_high(argument), high)

    def _masked(self, condition: Condition, true: int, false: int) -> int:
        label = true
        for shift, offset in ((0, _low(condition.argument)), (32, _high(condition.argument))):
            mask = condition.value >> shift & _LOW
            if not mask:
                continue
            label = self.out.branch(EQUAL, condition.other >> shift & _LOW, label, false)
            if mask != _LOW:
                label = self.out.mask(mask, label)
            label = self.out.load(offset, label)
        return label


def _low(argument: int) -> int:
    return _ARGS + 8 * argument


def _high(argument: int) -> int:
    return _low(argument) + 4
