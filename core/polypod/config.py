"""The configuration: TOML files and ``--set key=value``, checked into frozen dataclasses.

Which files are read, and which one wins, is told by `polypod.config_files`.

Unknown keys are errors that name the nearest known key. ``[handlers.NAME.options]``,
``[images]``, ``[network]`` and ``[plugins.NAME]`` belong to plugins, who check their own.

`default_text` prints the whole default with a comment per key; the comments are the metadata of the
dataclasses below, so the file, the ``--help`` and the code cannot disagree.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from polypod import config_files
from polypod.plugin.errors import InvalidArgument


def _key(default: Any, help_: str) -> Any:  # noqa: ANN401
    """Declare a key: its default and the sentence that explains it."""
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata={"help": help_})
    return field(default=default, metadata={"help": help_})


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """``[server]``."""

    listen: str = _key("unix:///run/polypod/polypod.sock", "where the CRI socket is; unix:// only")
    root: str = _key("/var/lib/polypod", "what survives a reboot: records, images, leases")
    state: str = _key(
        "/run/polypod", "what dies with the boot: namespaces, bundles, process sockets"
    )
    default_handler: str = _key("namespaces", "the handler of a pod that names none")
    cgroup_parent: str = _key(
        "/polypod", "cgroup below which pods without a cgroup_parent of their own live"
    )
    state_files: str = _key(
        "/run/opencontainer/containers",
        "where each container's state.json is published; empty publishes none",
    )
    cdi_dirs: list[str] = _key(
        ["/etc/cdi", "/var/run/cdi"],
        "where the files of CDI devices lie; one in a later directory wins over one in an earlier",
    )
    log_level: str = _key("info", "debug, info, warning or error")
    watch_s: float = _key(
        2.0, "seconds between looks at the configuration's files; 0 reads them at SIGHUP alone"
    )


@dataclass(frozen=True, slots=True)
class PluginsConfig:
    """``[plugins]``."""

    required: list[str] = _key([], "plugins without which the server does not start")
    disabled: list[str] = _key([], "plugins that are not loaded")
    order: list[str] = _key([], "the order in which adjust hooks run; others follow by name")
    hook_timeout_s: float = _key(5.0, "how long one hook of one plugin may take, seconds")
    options: dict[str, Any] = _key({}, "[plugins.NAME]: what a plugin takes; it checks its own")


@dataclass(frozen=True, slots=True)
class StreamingConfig:
    """``[streaming]``."""

    address: str = _key(
        "127.0.0.1:0", "where exec, attach and port-forward URLs lead; port 0 is any free one"
    )
    cert: str = _key("", "a file with the certificate chain (PEM): URLs begin with https then")
    key: str = _key("", "a file with the key of cert (PEM)")
    client_ca: str = _key(
        "", "a file with the CAs (PEM) of clients; needed where address is not the loopback"
    )
    idle_timeout_s: float = _key(
        14400.0, "seconds after which a stream on which nothing is said is closed"
    )


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """``[metrics]``."""

    listen: str = _key(
        "", "host:port where Prometheus reads the server's own metrics over HTTP; empty is nowhere"
    )
    pod_groups: list[str] = _key(
        ["cpu", "memory", "network", "disk", "disk-io", "process", "oom", "pressure", "spec"],
        "groups of the pods' metrics that ListPodSandboxMetrics tells",
    )
    traces: bool = _key(
        False,
        "send a span for each call and stage through OpenTelemetry, set up by its own environment",
    )


@dataclass(frozen=True, slots=True)
class HandlerConfig:
    """``[handlers.NAME]``: one runtime handler."""

    type: str = _key("namespaces", "the runtime type, as `polypod plugins` lists them")
    image_store: str = _key("content", "the image store whose root file systems it runs")
    rootfs_form: str = _key(
        "", "overlay, erofs, directory or block; empty is the best that type and store share"
    )
    options: dict[str, Any] = _key({}, "the type's own options")


@dataclass(frozen=True, slots=True)
class Config:
    """The whole file."""

    server: ServerConfig = ServerConfig()
    plugins: PluginsConfig = PluginsConfig()
    streaming: StreamingConfig = StreamingConfig()
    metrics: MetricsConfig = MetricsConfig()
    images: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=lambda: {"type": "bridge"})
    handlers: Mapping[str, HandlerConfig] = field(
        default_factory=lambda: {"namespaces": HandlerConfig()}
    )
    origins: Mapping[str, str] = field(default_factory=dict)
    """Key → where its value comes from: ``default``, a file, ``--set``."""

    def is_set(self, key: str) -> bool:
        """Tell whether somebody set a key, or a table that holds it."""
        parts = key.split(".")
        return any(".".join(parts[: n + 1]) in self.origins for n in range(len(parts)))


@dataclass(frozen=True, slots=True)
class Source:
    """Where a configuration comes from, so that it can be read again."""

    path: Path | None = None
    overrides: tuple[str, ...] = ()

    def load(self) -> Config:
        """Read it. Raises as `load`."""
        return load(self.path, self.overrides)

    def signature(self) -> config_files.Signature:
        """Return what changes when a file does."""
        return () if self.path is None else config_files.signature(self.path)


_SECTIONS: dict[str, type] = {
    "server": ServerConfig,
    "plugins": PluginsConfig,
    "streaming": StreamingConfig,
    "metrics": MetricsConfig,
}
_FREE = ("images", "network")
_FREE_HELP = {
    "images": [
        ("oci_dirs", '["/"]', "directories below which oci:PATH and archive references may lead"),
        ("hosts_dir", '"/etc/polypod/hosts.d"', "a tree of HOST/hosts.toml: mirrors per registry"),
        ("pull_progress_timeout_s", "60", "seconds without a byte that end a transfer"),
        ("pull_parallel_layers", "3", "layers of one pull that are fetched at once"),
        ("pull_attempts", "3", "rounds over all endpoints; broken transfers in a row"),
        ("token_realms", "[]", "hosts of token servers that may be loopback or link-local"),
        ("max_layer_bytes", f"{64 << 30}", "what one layer may unpack to, headers included"),
        ("max_layer_inodes", "2000000", "files and directories that one layer may have"),
        ("max_file_bytes", f"{32 << 30}", "what one file of a layer may have"),
        ("min_free_bytes", f"{256 << 20}", "what must stay free below server.root"),
        ("devices", '"skip"', "device nodes of a layer: skip, keep, or refuse the image"),
        ("overlay_options", '["volatile"]', "mount options of containers' root file systems"),
        ("usage_interval_s", "10", "seconds between two samples of writable layers; 0 takes none"),
        ("unpackers", "0", "layers that are unpacked at once; 0 is one for each processor"),
        ("pinned", "[]", "references of images that a kubelet is told to leave alone"),
    ],
    "network": [
        ("type", '"bridge"', "the network type, as `polypod plugins` lists them"),
        ("subnets", '["10.231.0.0/16", "fd00:10:231::/64"]', "pod addresses, one per family"),
        ("bridge", '""', "of the type bridge: the interface; empty makes a name of server.root"),
        ("mtu", "0", "of the type bridge: bytes; 0 is the kernel's"),
        ("masquerade", "true", "of the type bridge: pods talk to others as the node"),
        ("cni.conf_dir", '"/etc/cni/net.d"', "of the type cni: where its configurations lie"),
        ("cni.bin_dirs", '["/opt/cni/bin"]', "of the type cni: where its plugins lie"),
        ("cni.timeout_s", "30", "of the type cni: for one execution of one plugin, seconds"),
        ("cni.gc", "true", "of the type cni: at start plugins give back what nobody uses"),
    ],
}


def load(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a file and its drop-ins, then apply ``key=value`` overrides (TOML values; bare words are strings).

    Raises:
        InvalidArgument: naming the file, the key and what it may be.
    """
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if path is not None:
        tree, origins = config_files.read(path)
    for override in overrides:
        key = _apply(tree, override)
        origins[key] = "--set"
    return _build(tree, origins)


def from_tree(tree: Mapping[str, Any], origins: Mapping[str, str]) -> Config:
    """Return a configuration from nested tables, as `dataclasses.asdict` makes them.

    Raises:
        InvalidArgument: as `load`.
    """
    return _build(tree, origins)


def check(path: Path) -> list[str]:
    """Return what is wrong with a file, one sentence each; an empty list is a good file."""
    try:
        config = load(path)
    except InvalidArgument as error:
        return [str(error)]
    problems = []
    if config.server.default_handler not in config.handlers:
        problems.append(
            f"server.default_handler: no handler {config.server.default_handler!r}; "
            f"configured are {sorted(config.handlers)}"
        )
    return problems


def show(config: Config) -> list[tuple[str, str, str]]:
    """Return the effective configuration: (key, JSON value, origin), sorted by key."""
    flat: dict[str, Any] = {}
    tree = dataclasses.asdict(config)
    del tree["origins"]
    tree["plugins"].update(tree["plugins"].pop("options"))
    _flatten(tree, "", flat)
    return [(key, json.dumps(flat[key]), _origin(key, config.origins)) for key in sorted(flat)]


def default_text() -> str:
    """Return the whole default configuration with a comment for each key."""
    lines = ["# The defaults of polypod. Uncomment what you change.", ""]
    for name, kind in _SECTIONS.items():
        lines.append(f"[{name}]")
        for item in dataclasses.fields(kind):
            value = getattr(kind(), item.name)
            lines += [f"# {item.metadata['help']}", f"# {item.name} = {json.dumps(value)}"]
        lines.append("")
    for name, rows in _FREE_HELP.items():
        lines.append(f"[{name}]")
        for key, value, help_ in rows:
            lines += [f"# {help_}", f"# {key} = {value}"]
        lines.append("")
    lines.append("[handlers.namespaces]")
    for item in dataclasses.fields(HandlerConfig):
        if item.name != "options":
            value = getattr(HandlerConfig(), item.name)
            lines += [f"# {item.metadata['help']}", f"{item.name} = {json.dumps(value)}"]
    return "\n".join(lines) + "\n"


def _build(tree: Mapping[str, Any], origins: Mapping[str, str]) -> Config:
    known = {*_SECTIONS, *_FREE, "handlers"}
    for name in tree:
        if name not in known:
            raise InvalidArgument(_unknown(name, known))
    tree = {**tree, "plugins": _with_options(tree.get("plugins", {}))}
    parts: dict[str, Any] = {
        name: _section(kind, name, tree.get(name, {})) for name, kind in _SECTIONS.items()
    }
    for name in _FREE:
        value = tree.get(name, {})
        if not isinstance(value, dict):
            msg = f"{name}: {value!r} is not a table"
            raise InvalidArgument(msg)
        parts[name] = {"type": "bridge", **value} if name == "network" else dict(value)
    handlers = tree.get("handlers", {"namespaces": {}})
    if not isinstance(handlers, dict) or not all(isinstance(v, dict) for v in handlers.values()):
        msg = "handlers: must be tables, [handlers.NAME]"
        raise InvalidArgument(msg)
    parts["handlers"] = {
        name: _section(HandlerConfig, f"handlers.{name}", value) for name, value in handlers.items()
    }
    return Config(**parts, origins=dict(origins))


def _with_options(value: object) -> object:
    """Return ``[plugins]`` with the tables of plugins, ``[plugins.NAME]``, below ``options``."""
    if not isinstance(value, dict):
        return value
    known = {item.name for item in dataclasses.fields(PluginsConfig)}
    tables = {key: each for key, each in value.items() if key not in known and _is_table(each)}
    rest = {key: each for key, each in value.items() if key not in tables}
    given = rest.get("options", {})
    return {**rest, "options": {**given, **tables} if _is_table(given) else given}


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


def _section(kind: type, name: str, value: object) -> Any:  # noqa: ANN401
    if not isinstance(value, dict):
        msg = f"{name}: {value!r} is not a table"
        raise InvalidArgument(msg)
    hints = get_type_hints(kind)
    known = {item.name for item in dataclasses.fields(kind)}
    checked: dict[str, Any] = {}
    for key, item in value.items():
        if key not in known:
            raise InvalidArgument(_unknown(f"{name}.{key}", {f"{name}.{one}" for one in known}))
        checked[key] = _typed(f"{name}.{key}", item, hints[key])
    return kind(**checked)


def _typed(key: str, value: object, wanted: Any) -> object:  # noqa: ANN401
    origin = getattr(wanted, "__origin__", wanted)
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, origin) or (isinstance(value, bool) and origin is not bool):
        msg = f"{key}: {value!r} is not a {getattr(origin, '__name__', origin)}"
        raise InvalidArgument(msg)
    if isinstance(value, list) and not all(isinstance(item, str) for item in value):
        msg = f"{key}: every item of {value!r} must be a string"
        raise InvalidArgument(msg)
    return value


def _unknown(key: str, known: set[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(known))}"
    return f"configuration: unknown key {key!r}{hint}"


def _apply(tree: dict[str, Any], override: str) -> str:
    key, separator, raw = override.partition("=")
    key = key.strip()
    if not separator or not key:
        msg = f"--set {override!r}: give key=value, such as network.type=bridge"
        raise InvalidArgument(msg)
    try:
        value = tomllib.loads(f"v = {raw}")["v"]
    except tomllib.TOMLDecodeError:
        value = raw
    at = tree
    *path, last = key.split(".")
    for part in path:
        at = at.setdefault(part, {})
        if not isinstance(at, dict):
            msg = f"--set {override!r}: {part} is not a table"
            raise InvalidArgument(msg)
    at[last] = value
    return key


def _flatten(tree: object, prefix: str, flat: dict[str, Any]) -> None:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            _flatten(value, f"{prefix}.{key}" if prefix else key, flat)
    elif not isinstance(tree, Mapping):
        flat[prefix] = tree


def _origin(key: str, origins: Mapping[str, str]) -> str:
    return origins.get(key, "default")
