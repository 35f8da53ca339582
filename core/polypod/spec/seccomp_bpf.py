"""Classic BPF, assembled from its end: every jump goes forward, so its distance is known when it is made.

A label is the length of the program, counted from its end, once the instruction stands: what is
emitted later runs earlier. Conditional jumps reach 255 instructions; where that is not enough, a copy
of the return or an unconditional jump is put in reach.

Spec:
    linux/filter.h, linux/bpf_common.h; Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import struct
from typing import Final

# linux/bpf_common.h: class | size or operation | mode or source.
LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
JUMP: Final = 0x05  # BPF_JMP | BPF_JA
EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
GREATER: Final = 0x25  # BPF_JMP | BPF_JGT | BPF_K
GREATER_EQUAL: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
RETURN: Final = 0x06  # BPF_RET | BPF_K

MAX_INSTRUCTIONS: Final = 4096
"""BPF_MAXINSNS."""

_REACH: Final = 254  # one less than the field holds: the other target's trampoline may come between
_INSTRUCTION: Final = struct.Struct("<HBBI")


class Assembler:
    """Collects instructions from the last to the first."""

    __slots__ = ("_code", "_returns")

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int]] = []
        self._returns: dict[int, int] = {}

    def give(self, action: int) -> int:
        """Return the label of a return of ``action``, an old one if it is in reach."""
        known = self._returns.get(action)
        if known is not None and self._distance(known) <= _REACH:
            return known
        label = self._emit(RETURN, value=action)
        self._returns[action] = label
        return label

    def branch(self, test: int, value: int, true: int, false: int) -> int:
        """Compare the accumulator with a 32-bit value and go to one of two labels."""
        if true == false:
            return true
        true = self._near(true)
        false = self._near(false)
        return self._emit(test, self._distance(true), self._distance(false), value)

    def load(self, offset: int, then: int) -> int:
        """Load a word of struct seccomp_data, then go on at a label."""
        return self._emit(LOAD, value=offset, then=then)

    def mask(self, value: int, then: int) -> int:
        """Keep the bits of ``value`` in the accumulator, then go on at a label."""
        return self._emit(AND, value=value, then=then)

    def program(self) -> bytes:
        """Return the array of struct sock_filter; what was emitted last runs first."""
        return b"".join(_INSTRUCTION.pack(*item) for item in reversed(self._code))

    def __len__(self) -> int:
        return len(self._code)

    def _distance(self, label: int) -> int:
        return len(self._code) - label

    def _near(self, label: int) -> int:
        return label if self._distance(label) <= _REACH else self._copy(label)

    def _copy(self, label: int) -> int:
        code, _, _, value = self._code[label - 1]
        if code == RETURN:
            self._returns[value] = self._emit(RETURN, value=value)
        else:
            self._emit(JUMP, value=self._distance(label))
        return len(self._code)

    def _emit(
        self, code: int, true: int = 0, false: int = 0, value: int = 0, then: int | None = None
    ) -> int:
        if then is not None and self._distance(then):
            self._copy(then)
        self._code.append((code, true, false, value))
        return len(self._code)
