"""Reading a Localhost seccomp profile: the runtime-spec's JSON, and the form with conditions of docker.

That form adds ``archMap``, and ``includes`` and ``excludes`` per rule: they are resolved here, for one
machine, kernel and set of capabilities, to the plain form. Nothing that a profile says is dropped
silently: an unknown field may be a restriction.

Spec:
    runtime-spec config-linux.md, seccomp; schema/config-linux.json.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from typing import Final

from polypod.plugin.errors import InvalidArgument, Unsupported
from polypod.plugin.oci import Seccomp, SeccompArg, SeccompRule
from polypod.spec.json_reader import UINT32, UINT64, Node, load
from polypod.spec.seccomp_rules import ACTIONS, OPERATORS

MAX_PROFILE_BYTES: Final = 1024 * 1024
_MAX_RULES: Final = 2048
_MAX_NAMES: Final = 1024
_MAX_ARGS: Final = 36
_MAX_SMALL: Final = 64

_PROFILE_FIELDS: Final = frozenset(
    (
        "defaultAction",
        "defaultErrnoRet",
        "defaultErrno",
        "architectures",
        "archMap",
        "flags",
        "listenerPath",
        "listenerMetadata",
        "syscalls",
        "comment",
    )
)
_RULE_FIELDS: Final = frozenset(
    ("names", "name", "action", "errnoRet", "errno", "args", "includes", "excludes", "comment")
)
_ARG_FIELDS: Final = frozenset(("index", "value", "valueTwo", "op", "comment"))
_FILTER_FIELDS: Final = frozenset(("arches", "caps", "minKernel", "comment"))
_ARCH_MAP_FIELDS: Final = frozenset(("architecture", "subArchitectures", "comment"))
# What the conditions and the specification call the machines that we know.
_CONDITION_NAMES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_SPEC_NAMES: Final = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}
_ARCHITECTURE: Final = re.compile(r"SCMP_ARCH_[A-Z0-9_]{1,32}")
_SYSCALL: Final = re.compile(r"[A-Za-z0-9_]{1,64}")
_KERNEL: Final = re.compile(r"(\d{1,4})\.(\d{1,4})")


@dataclass(frozen=True, slots=True)
class _Circumstances:
    """What ``includes`` and ``excludes`` are judged by."""

    capabilities: frozenset[str]
    machine: str
    kernel: tuple[int, int]


def parse_profile(
    text: bytes,
    *,
    capabilities: frozenset[str] = frozenset(),
    machine: str | None = None,
    kernel: str | None = None,
) -> Seccomp:
    """Return the profile in a file's content.

    Args:
        text: the JSON document, at most 1 MiB.
        capabilities: the container's bounding set, with ``CAP_``, for conditional rules.
        machine: as ``uname -m`` names it; None = this host's.
        kernel: as ``uname -r`` names it; None = this host's.

    Raises:
        InvalidArgument: it is malformed; the text names the place.
        Unsupported: it wants a notification listener.
    """
    host = os.uname()
    where = _Circumstances(
        capabilities,
        host.machine if machine is None else machine,
        _kernel_version(host.release if kernel is None else kernel, "kernel"),
    )
    root = load(text, "seccomp profile", MAX_PROFILE_BYTES)
    try:
        return _profile(root, where)
    except InvalidArgument as error:
        raise InvalidArgument(f"seccomp profile: {error}") from error


def _profile(root: Node, where: _Circumstances) -> Seccomp:
    root.only(_PROFILE_FIELDS)
    for name in ("listenerPath", "listenerMetadata"):
        listener = root.get(name)
        if listener is not None and listener.text():
            raise Unsupported(f"seccomp profile: {name}: this version has no notification listener")
    rules = root.get("syscalls")
    found = [_rule(item, where) for item in rules.items(_MAX_RULES)] if rules else []
    flags = root.get("flags")
    return Seccomp(
        default_action=_action(root.need("defaultAction")),
        default_errno_ret=_errno(root, "defaultErrnoRet", "defaultErrno"),
        architectures=_architectures(root, where),
        flags=flags.texts(_MAX_SMALL) if flags else (),
        syscalls=tuple(rule for rule in found if rule is not None),
    )


def _rule(node: Node, where: _Circumstances) -> SeccompRule | None:
    """Read a rule; None if its conditions leave it out."""
    node.only(_RULE_FIELDS)
    args = node.get("args")
    rule = SeccompRule(
        names=_names(node),
        action=_action(node.need("action")),
        errno_ret=_errno(node, "errnoRet", "errno"),
        args=tuple(_arg(item) for item in args.items(_MAX_ARGS)) if args else (),
    )
    includes, excludes = node.get("includes"), node.get("excludes")
    kept = (includes is None or _included(includes, where)) and (
        excludes is None or not _excluded(excludes, where)
    )
    return rule if kept else None


def _names(node: Node) -> tuple[str, ...]:
    one, many = node.get("name"), node.get("names")
    if one is not None and many is not None:
        raise InvalidArgument(f"{one.path}: name and names exclude each other")
    found = [one] if one is not None else [*(node.need("names").items(_MAX_NAMES))]
    for item in found:
        if not _SYSCALL.fullmatch(item.text()):
            raise InvalidArgument(f"{item.path}: {item.text()[:80]!r} is no name of a system call")
    if not found:
        raise InvalidArgument(f"{node.path}.names: must not be empty")
    return tuple(item.text() for item in found)


def _arg(node: Node) -> SeccompArg:
    node.only(_ARG_FIELDS)
    operator = node.need("op")
    if operator.text() not in OPERATORS:
        raise InvalidArgument(f"{operator.path}: operator {operator.text()[:80]!r} is unknown")
    second = node.get("valueTwo")
    value = node.get("value")
    return SeccompArg(
        index=node.need("index").number((0, 5)),
        value=value.number(UINT64) if value else 0,
        op=operator.text(),
        value_two=second.number(UINT64) if second else 0,
    )


def _action(node: Node) -> str:
    if node.text() not in ACTIONS:
        raise InvalidArgument(f"{node.path}: action {node.text()[:80]!r} is unknown")
    return node.text()


def _errno(node: Node, number_key: str, name_key: str) -> int | None:
    """Read an errno by number, or by its name as containers-common adds it; the name wins there."""
    name, number = node.get(name_key), node.get(number_key)
    if name is not None and name.text():
        found = getattr(errno, name.text(), None) if name.text().startswith("E") else None
        if not isinstance(found, int):
            raise InvalidArgument(f"{name.path}: {name.text()[:40]!r} is no name of an errno")
        return found
    return None if number is None else number.number(UINT32)


def _architectures(root: Node, where: _Circumstances) -> tuple[str, ...]:
    plain, mapped = root.get("architectures"), root.get("archMap")
    if plain is not None and mapped is not None:
        raise InvalidArgument(f"{mapped.path}: architectures and archMap exclude each other")
    if plain is not None:
        return tuple(_architecture(item) for item in plain.items(_MAX_SMALL))
    for item in mapped.items(_MAX_SMALL) if mapped is not None else ():
        item.only(_ARCH_MAP_FIELDS)
        below = item.get("subArchitectures")
        names = [_architecture(item.need("architecture"))]
        names += [_architecture(one) for one in below.items(_MAX_SMALL)] if below else []
        if names[0] == _SPEC_NAMES.get(where.machine):
            return tuple(names)
    return ()


def _architecture(node: Node) -> str:
    if not _ARCHITECTURE.fullmatch(node.text()):
        raise InvalidArgument(f"{node.path}: {node.text()[:80]!r} is no SCMP_ARCH_ name")
    return node.text()


def _included(node: Node, where: _Circumstances) -> bool:
    arches, caps, kernel = _filter(node)
    return (
        (not arches or _CONDITION_NAMES.get(where.machine) in arches)
        and caps <= where.capabilities
        and (kernel is None or where.kernel >= kernel)
    )


def _excluded(node: Node, where: _Circumstances) -> bool:
    arches, caps, kernel = _filter(node)
    return (
        _CONDITION_NAMES.get(where.machine) in arches
        or bool(caps & where.capabilities)
        or (kernel is not None and where.kernel >= kernel)
    )


def _filter(node: Node) -> tuple[frozenset[str], frozenset[str], tuple[int, int] | None]:
    node.only(_FILTER_FIELDS)
    arches, caps, kernel = node.get("arches"), node.get("caps"), node.get("minKernel")
    return (
        frozenset(arches.texts(_MAX_SMALL) if arches else ()),
        frozenset(caps.texts(_MAX_SMALL) if caps else ()),
        None if kernel is None else _kernel_version(kernel.text(), kernel.path),
    )


def _kernel_version(text: str, place: str) -> tuple[int, int]:
    match = _KERNEL.match(text)
    if match is None:
        raise InvalidArgument(f"{place}: {text[:40]!r} is no version of a kernel")
    return int(match[1]), int(match[2])
