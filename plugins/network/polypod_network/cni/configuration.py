"""Network configurations: found in a directory, checked, read again when something changes there.

The first file by name is *the* network, as kubelets expect it. If that file is broken there is no
network until it is mended: going on with the second one would put pods where nobody wanted them.

Spec:
    containernetworking/cni SPEC.md, section 1 (Network configuration format).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from polypod.plugin.errors import Unavailable

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""What we speak, oldest first."""
_SUFFIXES = (".conf", ".conflist", ".json")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_LARGEST = 1 << 20

Signature = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class NetworkList:
    """One network: plugins to execute in order."""

    name: str
    version: str
    """CNI version of the configuration, by which every plugin is spoken to."""
    plugins: tuple[Mapping[str, object], ...]
    source: str
    """The file, for error texts."""
    disable_check: bool = False
    disable_gc: bool = False

    def at_least(self, version: str) -> bool:
        """Tell whether the configuration's version is not older than a known one."""
        return VERSIONS.index(self.version) >= VERSIONS.index(version)

    def wants(self, capability: str) -> bool:
        """Tell whether some plugin asks for a capability's arguments."""
        return any(capability in capabilities(plugin) for plugin in self.plugins)

    def as_json(self) -> dict[str, object]:
        """Return what `parse` reads back: the notes keep the configuration that ADD ran with."""
        return {
            "cniVersion": self.version,
            "name": self.name,
            "disableCheck": self.disable_check,
            "disableGC": self.disable_gc,
            "plugins": [dict(plugin) for plugin in self.plugins],
        }


class Configurations:
    """The network of one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._signature: Signature | None = None
        self._network: NetworkList | None = None
        self._problem = ""

    def current(self) -> NetworkList:
        """Return the network as the directory has it now.

        Raises:
            Unavailable: there is none, or its file is wrong; the text names the file.
        """
        signature = _signature(self._directory)
        if signature != self._signature:
            self._network, self._problem = None, ""
            try:
                self._network = load(self._directory)
            except (ValueError, OSError) as error:
                self._problem = str(error)
            self._signature = signature
        if self._network is None:
            raise Unavailable(self._problem)
        return self._network


def load(directory: Path) -> NetworkList:
    """Read the first network of a directory.

    Raises:
        ValueError: there is none, or its file is wrong; the text names the file.
    """
    files = [path for path in _files(directory) if path.suffix in _SUFFIXES]
    if not files:
        msg = f"no CNI configuration in {directory}: put a .conflist there"
        raise ValueError(msg)
    path = files[0]
    try:
        tree = _read(path)
        network = parse(tree, str(path))
        if tree.get("loadOnlyInlinedPlugins") is True or "plugins" not in tree:
            return network
        return _with_plugin_files(network, directory / network.name)
    except (ValueError, OSError) as error:
        msg = f"CNI configuration {path}: {error}"
        raise ValueError(msg) from error


def parse(tree: Mapping[str, object], source: str) -> NetworkList:
    """Return a network from a list (``plugins``) or from the old form, one plugin (``type``).

    Raises:
        ValueError: what is wrong with it.
    """
    name = tree.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        msg = f"name is {name!r}: letters, digits, '_', '.', '-' only"
        raise ValueError(msg)
    listed = tree.get("plugins")
    if listed is None and "type" in tree:
        listed = [tree]
    if not isinstance(listed, list) or not listed:
        msg = "plugins is no list, or an empty one"
        raise ValueError(msg)
    return NetworkList(
        name=name,
        version=_version(tree),
        plugins=tuple(_plugin(each) for each in listed),
        source=source,
        disable_check=_flag(tree, "disableCheck"),
        disable_gc=_flag(tree, "disableGC"),
    )


def capabilities(plugin: Mapping[str, object]) -> frozenset[str]:
    """Return the capabilities that a plugin's configuration switches on."""
    wanted = plugin.get("capabilities")
    if not isinstance(wanted, Mapping):
        return frozenset()
    return frozenset(str(key) for key, value in wanted.items() if value is True)


def is_component(kind: object) -> bool:
    """Tell whether a plugin type is a file's name and nothing else (E22: never a path)."""
    return (
        isinstance(kind, str)
        and kind not in {"", ".", ".."}
        and not set(kind) & {"/", "\0", ":"}
        and len(kind.encode()) <= 255
    )


def _version(tree: Mapping[str, object]) -> str:
    """Return the newest of the offered versions that we speak."""
    single = tree.get("cniVersion") or "0.1.0"
    offered = tree.get("cniVersions") or []
    if not isinstance(offered, list):
        msg = f"cniVersions is {offered!r}: not a list"
        raise ValueError(msg)
    known = [each for each in VERSIONS if each == single or each in offered]
    if not known:
        msg = f"cniVersion is {single!r}: known are {', '.join(VERSIONS)}"
        raise ValueError(msg)
    return known[-1]


def _plugin(value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        msg = f"a plugin is {value!r}: not an object"
        raise ValueError(msg)
    kind = value.get("type")
    if not is_component(kind):
        msg = f"a plugin's type is {kind!r}: give the name of a file in network.cni.bin_dirs"
        raise ValueError(msg)
    ipam = value.get("ipam")
    # The plugin itself executes this one; the old CNI library did so wherever the path led.
    if isinstance(ipam, Mapping) and "type" in ipam and not is_component(ipam["type"]):
        msg = f"plugin {kind!r}: its ipam type is {ipam['type']!r}: give the name of a file"
        raise ValueError(msg)
    return value


def _flag(tree: Mapping[str, object], key: str) -> bool:
    """Read a flag; the field has long accepted it as a word."""
    value = tree.get(key, False)
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in {"true", "false", ""}:
        return value.lower() == "true"
    msg = f"{key} is {value!r}: neither true nor false"
    raise ValueError(msg)


def _with_plugin_files(network: NetworkList, directory: Path) -> NetworkList:
    """Append the plugins that lie one per file in a directory named like the network."""
    extra = []
    for path in _files(directory):
        if path.suffix == ".conf":
            try:
                extra.append(_plugin(_read(path)))
            except (ValueError, OSError) as error:
                msg = f"plugin file {path}: {error}"
                raise ValueError(msg) from error
    return NetworkList(
        network.name,
        network.version,
        (*network.plugins, *extra),
        network.source,
        network.disable_check,
        network.disable_gc,
    )


def _read(path: Path) -> Mapping[str, object]:
    with path.open("rb") as file:
        raw = file.read(_LARGEST + 1)
    if len(raw) > _LARGEST:
        msg = f"is larger than {_LARGEST} bytes"
        raise ValueError(msg)
    try:
        tree = json.loads(raw)
    except (ValueError, RecursionError) as error:
        msg = f"is not JSON: {error}"
        raise ValueError(msg) from error
    if not isinstance(tree, dict):
        msg = "is not a JSON object"
        raise ValueError(msg)
    return tree


def _files(directory: Path) -> Sequence[Path]:
    """Return the files of a directory by name; a directory that is not there has none."""
    try:
        with os.scandir(directory) as entries:
            names = [each.name for each in entries if each.is_file()]
    except (FileNotFoundError, NotADirectoryError):
        return ()
    return [directory / name for name in sorted(names)]


def _signature(directory: Path) -> Signature:
    """Return what changes whenever a file there, or one level below, does."""
    found: list[tuple[str, int, int, int]] = []
    for parent in (directory, *_directories(directory)):
        for path in _files(parent):
            try:
                facts = path.stat()
            except OSError:
                continue
            found.append((str(path), facts.st_mtime_ns, facts.st_size, facts.st_ino))
    return tuple(found)


def _directories(directory: Path) -> Sequence[Path]:
    try:
        with os.scandir(directory) as entries:
            return [directory / each.name for each in entries if each.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return ()
