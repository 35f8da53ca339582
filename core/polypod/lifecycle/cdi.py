"""Devices by CDI: the vendors' files of this host, read when a container asks for one of their devices.

Spec:
    cncf-tags/container-device-interface SPEC.md.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from polypod.lifecycle.host_facts import HostFacts
from polypod.plugin.errors import InvalidArgument, NotFound
from polypod.plugin.oci import OciConfig
from polypod.spec import cdi, json_reader
from polypod.spec.cdi import CdiNode, CdiSpec, Edits
from polypod.spec.devices import HostDevice, device_nodes, device_rules
from polypod.spec.json_reader import Node

DIRECTORIES: Final = (Path("/etc/cdi"), Path("/var/run/cdi"))
"""Those of the specification, the strongest last."""
_FILE_BYTES: Final = 4 << 20
_FILES: Final = 1000
_SUFFIXES: Final = (".json", ".yaml", ".yml")


def find_edits(names: Sequence[str], directories: Iterable[Path]) -> Edits:
    """Return what the named devices change. Blocks.

    Raises:
        InvalidArgument: a name is malformed, or two files of one directory have the device.
        NotFound: no file has it; the text tells which files could not be read.
        Unsupported: it asks for what cannot be done.
    """
    wanted = {name: cdi.check_name(name) for name in names}
    found: dict[str, CdiSpec] = {}
    broken: list[str] = []
    for directory in directories:
        here: dict[str, tuple[CdiSpec, Path]] = {}
        for path in _files(directory):
            try:
                spec = cdi.read_spec(_load(path))
            except (InvalidArgument, OSError) as error:
                broken.append(f"{path}: {error}")
                continue
            for name, (kind, device) in wanted.items():
                if kind == spec.kind and device in spec.devices:
                    _check_alone(name, here, path)
                    here[name] = (spec, path)
        found.update({name: spec for name, (spec, _path) in here.items()})
    for name in wanted:
        if name not in found:
            rest = f"; not readable: {'; '.join(broken)}" if broken else ""
            places = ", ".join(map(str, directories))
            raise NotFound(f"CDI device {name}: no file in {places} has it{rest}")
    return cdi.merge(names, found)


def _check_alone(name: str, here: dict[str, tuple[CdiSpec, Path]], path: Path) -> None:
    if name in here:
        raise InvalidArgument(f"CDI device {name}: both {here[name][1]} and {path} have it")


def _files(directory: Path) -> list[Path]:
    try:
        return sorted(each for each in directory.iterdir() if each.suffix in _SUFFIXES)[:_FILES]
    except OSError:
        return []


def _load(path: Path) -> Node:
    # Non-blocking: a fifo there must not hang us.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidArgument(f"{path}: is no regular file")
        text = file.read(_FILE_BYTES + 1)
    if path.suffix == ".json":
        return json_reader.load(text, str(path), _FILE_BYTES)
    # A host without such files does not load the library.
    from polypod.spec.yaml_reader import load_yaml

    return load_yaml(text, str(path), _FILE_BYTES)


def add_devices(config: OciConfig, names: Sequence[str], directories: Iterable[Path]) -> OciConfig:
    """Return a config with CDI devices that were not in its request: for plugins. Blocks.

    Raises:
        NotFound: no file has one of the names.
        InvalidArgument: a file is malformed.
        Unsupported: a device asks for what is not done here.
    """
    edits = find_edits(names, directories)
    devices = host_devices(edits.nodes)
    linux, nodes = config.linux, device_nodes(devices)
    paths = {node.path for node in nodes}
    extra = device_rules(devices, privileged=False)[len(device_rules((), privileged=False)) :]
    resources = replace(linux.resources, devices=linux.resources.devices + extra)
    kept = tuple(node for node in linux.devices if node.path not in paths)
    linux = replace(linux, devices=kept + nodes, resources=resources)
    return cdi.apply(replace(config, linux=linux), edits)


def host_devices(nodes: Iterable[CdiNode]) -> list[HostDevice]:
    """Return device nodes with what the files leave out, as the host has it. Blocks.

    Raises:
        InvalidArgument: a node that must be looked at is not there.
    """
    return [_complete(node) for node in nodes]


def _complete(node: CdiNode) -> HostDevice:
    if node.type and node.major is not None and node.minor is not None:
        there = HostDevice(node.path, node.type, node.major, node.minor, 0o666)
    else:
        (there, *more) = HostFacts.devices_at(node.host_path, node.path, node.permissions)
        if more or (node.type and node.type not in (there.type, "u")):
            raise InvalidArgument(
                f"CDI device node {node.host_path}: is no {node.type or 'device'}"
            )
    return HostDevice(
        node.path,
        node.type or there.type,
        there.major if node.major is None else node.major,
        there.minor if node.minor is None else node.minor,
        there.file_mode if node.file_mode is None else node.file_mode,
        there.uid if node.uid is None else node.uid,
        there.gid if node.gid is None else node.gid,
        node.permissions,
    )
