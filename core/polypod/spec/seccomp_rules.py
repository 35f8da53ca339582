"""What a seccomp profile says about each system call number, before any instruction is made.

A decision is a list of branches: the first whose conditions all hold gives the action, and the last one
has none. ``polypod.spec.seccomp`` documents what is decided where the specification leaves it open.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Final, NamedTuple

from polypod.plugin.errors import InvalidArgument, Unsupported
from polypod.plugin.oci import Seccomp, SeccompArg, SeccompRule

# linux/seccomp.h, SECCOMP_RET_…: those that carry nothing, and those that carry a number.
_PLAIN_ACTIONS: Final = {
    "SCMP_ACT_KILL": 0x0000_0000,
    "SCMP_ACT_KILL_THREAD": 0x0000_0000,
    "SCMP_ACT_KILL_PROCESS": 0x8000_0000,
    "SCMP_ACT_TRAP": 0x0003_0000,
    "SCMP_ACT_LOG": 0x7FFC_0000,
    "SCMP_ACT_ALLOW": 0x7FFF_0000,
}
_NUMBERED_ACTIONS: Final = {
    # action, greatest number: the kernel cuts an errno at MAX_ERRNO
    "SCMP_ACT_ERRNO": (0x0005_0000, 4095),
    "SCMP_ACT_TRACE": (0x7FF0_0000, 0xFFFF),
}
_NOTIFY: Final = "SCMP_ACT_NOTIFY"
ACTIONS: Final = frozenset((*_PLAIN_ACTIONS, *_NUMBERED_ACTIONS, _NOTIFY))
"""What a profile may name."""
KILL_PROCESS: Final = _PLAIN_ACTIONS["SCMP_ACT_KILL_PROCESS"]
ERRNO: Final = _NUMBERED_ACTIONS["SCMP_ACT_ERRNO"][0]
_ACTION_BITS: Final = 0xFFFF_0000
_EPERM: Final = 1
_ENOSYS: Final = 38
_PREFIX: Final = "SCMP_CMP_"
OPERATORS: Final = frozenset(
    _PREFIX + name for name in ("EQ", "NE", "LT", "LE", "GT", "GE", "MASKED_EQ")
)
"""What a profile may compare with."""
_WORD: Final = 1 << 64


class Condition(NamedTuple):
    """One comparison of a 64-bit argument; ``other`` is read by MASKED_EQ alone: arg & value == other."""

    argument: int
    operator: str
    value: int
    other: int


class Branch(NamedTuple):
    """Conditions that must all hold, and the kernel's action if they do."""

    conditions: tuple[Condition, ...]
    action: int


Decision = tuple[Branch, ...]
Ranges = list[tuple[int, Decision]]
"""The first number of each range, ascending from 0, and what holds up to the next one."""


def number_ranges(profile: Seccomp, numbers: Mapping[str, int]) -> Ranges:
    """Return the decisions for all 2³² numbers of the native ABI, neighbours that agree merged.

    Raises:
        InvalidArgument: an action, operator or number is unknown or out of range.
        Unsupported: ``SCMP_ACT_NOTIFY``.
    """
    default = action_value(profile.default_action, profile.default_errno_ret)
    decided = {
        number: _decision(branches, default)
        for number, branches in _by_number(profile.syscalls, numbers, default).items()
    }
    points: dict[int, Decision] = {}
    expected = 0
    for number in sorted(decided):
        if number > expected:
            points[expected] = (Branch((), default),)
        points[number] = decided[number]
        expected = number + 1
    points.setdefault(expected, (Branch((), default),))
    newest = _newest(profile.syscalls, numbers)
    if default & _ACTION_BITS == ERRNO and newest is not None:
        points = {first: decision for first, decision in points.items() if first <= newest}
        points[newest + 1] = (Branch((), ERRNO | _ENOSYS),)
    return _merged(points)


def action_value(action: str, errno_ret: int | None) -> int:
    """Return SECCOMP_RET_… for an action of a profile; a number that is not given is EPERM.

    Raises:
        InvalidArgument: the action is unknown, or takes no (such) number.
        Unsupported: ``SCMP_ACT_NOTIFY``.
    """
    if action == _NOTIFY:
        raise Unsupported("seccomp: SCMP_ACT_NOTIFY needs a listener, which this version has not")
    if action in _PLAIN_ACTIONS:
        if errno_ret is not None:
            raise InvalidArgument(f"seccomp: {action} takes no errnoRet, {errno_ret} is given")
        return _PLAIN_ACTIONS[action]
    if action not in _NUMBERED_ACTIONS:
        raise InvalidArgument(f"seccomp: action {action!r} is unknown")
    value, greatest = _NUMBERED_ACTIONS[action]
    number = _EPERM if errno_ret is None else errno_ret
    if not 0 <= number <= greatest:
        raise InvalidArgument(f"seccomp: {action} with errnoRet {number}: from 0 to {greatest}")
    return value | number


def _newest(rules: Iterable[SeccompRule], numbers: Mapping[str, int]) -> int | None:
    named = [numbers[name] for rule in rules for name in rule.names if name in numbers]
    return max(named, default=None)


def _by_number(
    rules: Iterable[SeccompRule], numbers: Mapping[str, int], default: int
) -> dict[int, list[Branch]]:
    found: dict[int, list[Branch]] = {}
    for rule in rules:
        action = action_value(rule.action, rule.errno_ret)
        alternatives = _alternatives(rule.args)
        if action == default:
            continue
        branches = [Branch(conditions, action) for conditions in alternatives]
        for name in rule.names:
            number = numbers.get(name)
            if number is not None:
                found.setdefault(number, []).extend(branches)
    return found


def _decision(branches: list[Branch], default: int) -> Decision:
    for branch in branches:
        if not branch.conditions:
            return (branch,)
    # sorted() is stable: within one action the order of the profile stays.
    ordered = sorted(dict.fromkeys(branches), key=lambda branch: _permissiveness(branch.action))
    return (*ordered, Branch((), default))


def _permissiveness(action: int) -> int:
    """The kernel compares actions as signed numbers: KILL_PROCESS, the least, is negative."""
    kind = action & _ACTION_BITS
    return kind - (1 << 32) if kind & 0x8000_0000 else kind


def _alternatives(args: tuple[SeccompArg, ...]) -> list[tuple[Condition, ...]]:
    conditions = [_condition(item) for item in args]
    if len({item.argument for item in conditions}) < len(conditions):
        return [(item,) for item in conditions]
    return [tuple(conditions)]


def _condition(item: SeccompArg) -> Condition:
    operator = item.op.removeprefix(_PREFIX)
    if item.op not in OPERATORS:
        raise InvalidArgument(f"seccomp: operator {item.op!r} is unknown")
    if not 0 <= item.index <= 5:
        raise InvalidArgument(f"seccomp: argument index {item.index}: must be from 0 to 5")
    if not (0 <= item.value < _WORD and 0 <= item.value_two < _WORD):
        raise InvalidArgument(
            f"seccomp: value {item.value} or valueTwo {item.value_two}: must fit 64 bits"
        )
    other = item.value_two & item.value if operator == "MASKED_EQ" else 0
    return Condition(item.index, operator, item.value, other)


def _merged(points: Mapping[int, Decision]) -> Ranges:
    runs = groupby(sorted(points.items(), key=lambda item: item[0]), key=lambda item: item[1])
    return [(next(run)[0], decision) for decision, run in runs]
