"""Device rules: as lines for cgroup v1, and as a program for cgroup v2.

The rules are a list; for each kind of access the last rule that fits the device decides, and nothing
fits is a refusal. v1 knows only "all but" or "none but" a set of exceptions: what cannot be said
so is refused, never widened (E23).

Spec:
    runtime-spec config-linux.md, device cgroup; Documentation/admin-guide/cgroup-v1/devices.rst;
    linux/bpf.h, struct bpf_cgroup_dev_ctx.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from polypod.plugin.errors import InvalidArgument, Unsupported
from polypod.plugin.oci import DeviceRule

# linux/bpf.h, BPF_DEVCG_…
_BITS: Final = {"m": 1, "r": 2, "w": 4}
_ALL: Final = 7
_TYPES: Final = {"b": 1, "c": 2, "u": 2}
_LETTERS: Final = {1: "b", 2: "c"}
_MAX_NUMBER: Final = 2**31 - 1

_INSTRUCTION: Final = struct.Struct("<BBhi")
# linux/bpf.h and linux/bpf_common.h: class | size, operation and source.
_LOAD_WORD: Final = 0x61  # BPF_LDX | BPF_MEM | BPF_W
_MOVE: Final = 0xB7  # BPF_ALU64 | BPF_MOV | BPF_K
_MOVE_REGISTER: Final = 0xBF  # BPF_ALU64 | BPF_MOV | BPF_X
_AND: Final = 0x57  # BPF_ALU64 | BPF_AND | BPF_K
_SHIFT_RIGHT: Final = 0x77  # BPF_ALU64 | BPF_RSH | BPF_K
_JUMP: Final = 0x05  # BPF_JMP | BPF_JA
_NOT_EQUAL: Final = 0x55  # BPF_JMP | BPF_JNE | BPF_K
_SET: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_EXIT: Final = 0x95  # BPF_JMP | BPF_EXIT
# Registers: the answer, the context, then what the preamble takes out of it.
_ANSWER, _CONTEXT, _KIND, _ACCESS, _MAJOR, _MINOR = range(6)


class _Devices(NamedTuple):
    """A set of devices; None = any."""

    kind: int | None
    major: int | None
    minor: int | None

    def covers(self, other: _Devices) -> bool:
        """Tell whether every device of ``other`` is in the set."""
        return all(mine in (None, its) for mine, its in zip(self, other, strict=True))

    def meets(self, other: _Devices) -> bool:
        """Tell whether the sets have a device in common."""
        pairs = zip(self, other, strict=True)
        return all(mine is None or its is None or mine == its for mine, its in pairs)


class _Rule(NamedTuple):
    allow: bool
    devices: _Devices
    bits: int


_EVERYTHING: Final = _Devices(None, None, None)


def v1_device_files(rules: tuple[DeviceRule, ...]) -> list[tuple[str, str]]:
    """Return the writes to ``devices.deny`` and ``devices.allow``; none without rules.

    Raises:
        InvalidArgument: a rule is malformed.
        Unsupported: a rule makes an exception from an exception.
    """
    if not rules:
        return []
    allowed, exceptions = False, dict[_Devices, int]()
    for rule in _parsed(rules):
        if rule.devices == _EVERYTHING and rule.bits == _ALL:
            allowed, exceptions = rule.allow, {}
        elif rule.allow is allowed:
            _take_away(exceptions, rule)
        else:
            exceptions[rule.devices] = exceptions.get(rule.devices, 0) | rule.bits
    lines = [("devices.deny", "a"), *([("devices.allow", "a")] if allowed else [])]
    name = "devices.deny" if allowed else "devices.allow"
    if not allowed:
        exceptions = _joined(exceptions)
    return lines + [(name, line) for key, bits in exceptions.items() for line in _lines(key, bits)]


def device_program(rules: tuple[DeviceRule, ...]) -> bytes:
    """Return a BPF_PROG_TYPE_CGROUP_DEVICE program: an array of struct bpf_insn, little endian.

    The rules are looked at from the last to the first. What an allowing rule grants is struck from
    the access asked for, until nothing is left; a refusing rule that meets what is left ends it.

    Raises:
        InvalidArgument: a rule is malformed.
    """
    code = [
        (_LOAD_WORD, _ACCESS, 0, 0),
        (_MOVE_REGISTER, _KIND, 0, 0),
        (_AND, _KIND, 0, 0xFFFF),
        (_SHIFT_RIGHT, _ACCESS, 0, 16),
        (_LOAD_WORD, _MAJOR, 4, 0),
        (_LOAD_WORD, _MINOR, 8, 0),
    ]
    sources = {_LOAD_WORD: _CONTEXT, _MOVE_REGISTER: _ACCESS}
    for rule in reversed(_parsed(rules)):
        code += _rule_code(rule)
        if rule.devices == _EVERYTHING and rule.bits == _ALL:
            break
    else:
        code += _answer(allow=False)
    return b"".join(
        _INSTRUCTION.pack(operation, sources.get(operation, 0) << 4 | register, offset, value)
        for operation, register, offset, value in code
    )


_Code = list[tuple[int, int, int, int]]
"""Operation, target register, offset, value."""


def _rule_code(rule: _Rule) -> _Code:
    body = _grant(rule.bits) if rule.allow else _refusal(rule.bits)
    tests = [
        (register, value)
        for register, value in zip((_KIND, _MAJOR, _MINOR), rule.devices, strict=True)
        if value is not None
    ]
    code: _Code = []
    for index, (register, value) in enumerate(tests):
        skipped = len(tests) - index - 1 + len(body)
        code.append((_NOT_EQUAL, register, skipped, value))
    return code + body


def _grant(bits: int) -> _Code:
    if bits == _ALL:
        return _answer(allow=True)
    return [
        (_AND, _ACCESS, 0, _ALL & ~bits),
        (_NOT_EQUAL, _ACCESS, 2, 0),
        *_answer(allow=True),
    ]


def _refusal(bits: int) -> _Code:
    if bits == _ALL:
        return _answer(allow=False)
    return [(_SET, _ACCESS, 1, bits), (_JUMP, 0, 2, 0), *_answer(allow=False)]


def _answer(*, allow: bool) -> _Code:
    return [(_MOVE, _ANSWER, 0, int(allow)), (_EXIT, 0, 0, 0)]


def _take_away(exceptions: dict[_Devices, int], rule: _Rule) -> None:
    """Strike from the exceptions what the rule gives back to what holds for all others."""
    for key, bits in list(exceptions.items()):
        if not bits & rule.bits or not key.meets(rule.devices):
            continue
        if not rule.devices.covers(key):
            raise Unsupported(
                f"device rule {_lines(rule.devices, rule.bits)[0]!r}: cgroup v1 cannot except it from "
                f"{_lines(key, bits)[0]!r}, which an earlier rule names"
            )
        exceptions[key] = bits & ~rule.bits
        if not exceptions[key]:
            del exceptions[key]


def _joined(exceptions: dict[_Devices, int]) -> dict[_Devices, int]:
    """Add to each exception what wider ones grant: v1 wants one line that grants all that is asked."""
    joined = dict.fromkeys(exceptions, 0)
    for key in joined:
        for wider, bits in exceptions.items():
            if wider.covers(key):
                joined[key] |= bits
    return joined


def _lines(devices: _Devices, bits: int) -> list[str]:
    kinds = _LETTERS.values() if devices.kind is None else [_LETTERS[devices.kind]]
    numbers = [("*" if item is None else str(item)) for item in (devices.major, devices.minor)]
    access = "".join(letter for letter in "rwm" if bits & _BITS[letter])
    return [f"{kind} {numbers[0]}:{numbers[1]} {access}" for kind in kinds]


def _parsed(rules: tuple[DeviceRule, ...]) -> list[_Rule]:
    return [_parse(rule) for rule in rules]


def _parse(rule: DeviceRule) -> _Rule:
    if rule.type != "a" and rule.type not in _TYPES:
        raise InvalidArgument(f"device rule: type {rule.type!r} is not one of a, b, c, u")
    if not rule.access or not set(rule.access) <= set(_BITS):
        raise InvalidArgument(f"device rule: access {rule.access!r} must be some of r, w, m")
    numbers = [None if item in (None, -1) else item for item in (rule.major, rule.minor)]
    if any(item is not None and not 0 <= item <= _MAX_NUMBER for item in numbers):
        raise InvalidArgument(f"device rule: {rule.major}:{rule.minor} are no numbers of a device")
    bits = sum(_BITS[letter] for letter in set(rule.access))
    return _Rule(rule.allow, _Devices(_TYPES.get(rule.type), numbers[0], numbers[1]), bits)
