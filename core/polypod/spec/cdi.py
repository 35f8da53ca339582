"""Devices by the Container Device Interface: what a vendor's file says, and what it makes of a container.

Hooks, cache classes and network devices of such files are refused with the reason: a device that asks for them
would not work without.

Spec:
    cncf-tags/container-device-interface SPEC.md, versions 0.3 to 1.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from polypod.plugin.errors import InvalidArgument, Unsupported
from polypod.plugin.oci import OciConfig, OciMount, Process
from polypod.spec.json_reader import INT64, UINT32, Node
from polypod.spec.paths import container_path, depth, host_path

_MAX_ITEMS: Final = 1024
_VERSION: Final = re.compile(r"v?(0\.[3-9]|1\.[0-9])\.[0-9]+")
_KIND: Final = re.compile(
    r"[A-Za-z]([A-Za-z0-9._-]*[A-Za-z0-9])?/[A-Za-z]([A-Za-z0-9_-]*[A-Za-z0-9])?"
)
_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?")
_EDITS: Final = frozenset(
    ["env", "deviceNodes", "mounts", "hooks", "additionalGids", "intelRdt", "netDevices"]
)
_MODE: Final = (0, 0o7777)


@dataclass(frozen=True, slots=True)
class CdiNode:
    """A device node; what is None is as on the host."""

    path: str
    host_path: str
    type: str = ""
    major: int | None = None
    minor: int | None = None
    file_mode: int | None = None
    permissions: str = "rwm"
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True, slots=True)
class Edits:
    """What a device changes in a container."""

    env: tuple[str, ...] = ()
    nodes: tuple[CdiNode, ...] = ()
    mounts: tuple[OciMount, ...] = ()
    groups: tuple[int, ...] = ()
    refused: str = ""
    """What of it cannot be done; ``""`` = it all can."""


@dataclass(frozen=True, slots=True)
class CdiSpec:
    """One file."""

    kind: str
    """``vendor/class``."""
    devices: Mapping[str, Edits] = field(default_factory=dict)
    edits: Edits = Edits()
    """Of every container that gets one of its devices."""


def check_name(name: str) -> tuple[str, str]:
    """Return (kind, device) of a fully qualified name such as ``vendor.com/class=name``.

    Raises:
        InvalidArgument: it is malformed.
    """
    kind, equals, device = name.partition("=")
    if not equals or not _KIND.fullmatch(kind) or not _NAME.fullmatch(device):
        raise InvalidArgument(f"CDI device {name[:200]!r}: give vendor/class=name")
    return kind, device


def read_spec(root: Node) -> CdiSpec:
    """Read a file's document.

    Raises:
        InvalidArgument: it is malformed; the text names the place.
    """
    root.only(("cdiVersion", "kind", "annotations", "devices", "containerEdits"))
    version, kind = root.need("cdiVersion").text(), root.need("kind").text()
    if not _VERSION.fullmatch(version):
        raise InvalidArgument(f"cdiVersion: {version[:40]!r} is not from 0.3 to 1.x")
    if not _KIND.fullmatch(kind):
        raise InvalidArgument(f"kind: {kind[:200]!r} is no vendor/class")
    devices: dict[str, Edits] = {}
    for item in root.need("devices").items(_MAX_ITEMS):
        item.only(("name", "annotations", "containerEdits"))
        name = item.need("name").text()
        if not _NAME.fullmatch(name) or name in devices:
            raise InvalidArgument(f"{item.path}.name: {name[:200]!r} is malformed, or there twice")
        devices[name] = _edits(item.need("containerEdits"))
    common = root.get("containerEdits")
    return CdiSpec(kind, devices, Edits() if common is None else _edits(common))


def _edits(node: Node) -> Edits:
    node.only(_EDITS)
    refused = [
        what
        for key, what in (
            ("hooks", "hooks, which no handler runs"),
            ("intelRdt", "a cache class (intelRdt)"),
            ("netDevices", "network devices"),
        )
        if (found := node.get(key)) is not None and _is_something(found)
    ]
    env, nodes, mounts = node.get("env"), node.get("deviceNodes"), node.get("mounts")
    groups = node.get("additionalGids")
    return Edits(
        env=() if env is None else tuple(map(_variable, env.items(_MAX_ITEMS))),
        nodes=() if nodes is None else tuple(map(_device, nodes.items(_MAX_ITEMS))),
        mounts=() if mounts is None else tuple(map(_mount, mounts.items(_MAX_ITEMS))),
        groups=()
        if groups is None
        else tuple(item.number((1, UINT32[1] - 1)) for item in groups.items(_MAX_ITEMS)),
        refused=" and ".join(refused),
    )


def _is_something(node: Node) -> bool:
    """An empty list or object asks for nothing."""
    try:
        return bool(list(node.items()))
    except InvalidArgument:
        return bool(list(node.members()))


def _variable(node: Node) -> str:
    text = node.text()
    if text.find("=") < 1 or "\0" in text:
        raise InvalidArgument(f"{node.path}: {text[:80]!r} is no NAME=value")
    return text


def _device(node: Node) -> CdiNode:
    node.only(
        ("path", "hostPath", "type", "major", "minor", "fileMode", "permissions", "uid", "gid")
    )
    path = container_path(node.need("path").text(), f"{node.path}.path")
    kind = _text(node, "type")
    if kind not in ("", "b", "c", "u", "p"):
        raise InvalidArgument(f"{node.path}.type: {kind!r} is none of b, c, u, p")
    permissions = _text(node, "permissions") or "rwm"
    if not set(permissions) <= set("rwm"):
        raise InvalidArgument(f"{node.path}.permissions: {permissions!r}: only r, w and m exist")
    return CdiNode(
        path,
        host_path(_text(node, "hostPath") or path, f"{node.path}.hostPath"),
        kind,
        _number(node, "major", INT64),
        _number(node, "minor", INT64),
        _number(node, "fileMode", _MODE),
        permissions,
        _number(node, "uid", UINT32),
        _number(node, "gid", UINT32),
    )


def _mount(node: Node) -> OciMount:
    node.only(("hostPath", "containerPath", "options", "type"))
    source = node.need("hostPath").text()
    kind = _text(node, "type") or "bind"
    options = node.get("options")
    words = ("ro", "nosuid", "nodev") if options is None else options.texts(_MAX_ITEMS)
    if kind == "bind":
        source = host_path(source, f"{node.path}.hostPath")
        words = tuple(dict.fromkeys(("rbind", "rprivate", *words)))
    where = container_path(node.need("containerPath").text(), f"{node.path}.containerPath")
    if where == "/":
        raise InvalidArgument(f"{node.path}.containerPath: the root cannot be replaced")
    return OciMount(where, kind, source, words)


def _text(node: Node, key: str) -> str:
    found = node.get(key)
    return "" if found is None else found.text()


def _number(node: Node, key: str, bounds: tuple[int, int]) -> int | None:
    found = node.get(key)
    return None if found is None else found.number(bounds)


def merge(names: Iterable[str], specs: Mapping[str, CdiSpec]) -> Edits:
    """Return all that devices change together: what a file says for all of its devices counts once.

    Args:
        names: of the devices, fully qualified.
        specs: name → the file that has it.

    Raises:
        Unsupported: one asks for what cannot be done.
    """
    total, seen = Edits(), set()
    for name in dict.fromkeys(names):
        spec = specs[name]
        parts = [spec.devices[check_name(name)[1]]]
        if id(spec) not in seen:
            seen.add(id(spec))
            parts.insert(0, spec.edits)
        for part in parts:
            if part.refused:
                raise Unsupported(f"CDI device {name}: its file asks for {part.refused}")
            total = Edits(
                (*total.env, *part.env),
                (*total.nodes, *part.nodes),
                (*total.mounts, *part.mounts),
                (*total.groups, *part.groups),
            )
    return total


def apply(config: OciConfig, edits: Edits) -> OciConfig:
    """Return a config with the environment, mounts and groups of devices; nodes are the caller's.

    A mount of a device replaces one on the same path, a variable one of the same name.
    """
    taken = {mount.destination for mount in edits.mounts}
    mounts = [*(each for each in config.mounts if each.destination not in taken), *edits.mounts]
    mounts.sort(key=lambda each: depth(each.destination))
    return replace(config, mounts=tuple(mounts), process=_process(config.process, edits))


def _process(process: Process, edits: Edits) -> Process:
    variables = dict(item.partition("=")[::2] for item in (*process.env, *edits.env))
    groups = dict.fromkeys((*process.user.additional_gids, *edits.groups))
    return replace(
        process,
        env=tuple(f"{name}={value}" for name, value in variables.items()),
        user=replace(process.user, additional_gids=tuple(groups)),
    )
