"""Reading a ``config.json``, one function per object of the specification."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, TypeVar

from polypod.plugin.errors import InvalidArgument
from polypod.plugin.oci import (
    CapabilitySets,
    CpuLimits,
    DeviceRule,
    Hook,
    Hooks,
    Linux,
    MemoryLimits,
    Namespace,
    OciConfig,
    OciDevice,
    OciHugepageLimit,
    OciIdMapping,
    OciMount,
    OciResources,
    Process,
    Rlimit,
    Seccomp,
    SeccompArg,
    SeccompRule,
    User,
)
from polypod.spec.json_reader import INT64, UINT32, UINT64, Node

_T = TypeVar("_T")

MAX_ITEMS: Final = 4096
"""Of any list: more mounts, devices or rules are an attack or a mistake (E8)."""
_INT32: Final = (-(2**31), 2**31 - 1)
_OOM_SCORE: Final = (-1000, 1000)
_RLIM_INFINITY: Final = 2**64 - 1
_VERSION: Final = re.compile(r"1\.\d{1,5}\.\d{1,5}([-+][0-9A-Za-z.+-]{1,64})?")
_NAMESPACES: Final = frozenset(("pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"))
_EMPTY: Final[dict[str, object]] = {}


def read_config(root: Node) -> OciConfig:
    """Read the whole document.

    Raises:
        InvalidArgument: a value has the wrong type or is out of range; the text names its path.
    """
    version = root.need("ociVersion")
    if not _VERSION.fullmatch(version.text()):
        raise InvalidArgument(f"{version.path}: {version.text()[:40]!r} is no version 1.x")
    top = root.need("root")
    return OciConfig(
        process=_process(_child(root, "process")),
        root_path=_not_empty(top.need("path")),
        root_readonly=_flag(top, "readonly"),
        hostname=_text(root, "hostname"),
        domainname=_text(root, "domainname"),
        mounts=_list(root, "mounts", _mount),
        linux=_linux(_child(root, "linux")),
        hooks=_hooks(_child(root, "hooks")),
        annotations=_strings(root, "annotations"),
        oci_version=version.text(),
    )


def _process(node: Node) -> Process:
    cwd = _text(node, "cwd", "/")
    if not cwd.startswith("/"):
        raise InvalidArgument(f"{node.path}.cwd: {cwd[:80]!r} must be absolute")
    size, capabilities = node.get("consoleSize"), node.get("capabilities")
    return Process(
        args=_texts(node, "args"),
        env=_texts(node, "env"),
        cwd=cwd,
        terminal=_flag(node, "terminal"),
        console_size=None
        if size is None
        else (size.need("height").number(UINT32), size.need("width").number(UINT32)),
        user=_user(_child(node, "user")),
        capabilities=None if capabilities is None else _capabilities(capabilities),
        rlimits=_list(node, "rlimits", _rlimit),
        no_new_privileges=_flag(node, "noNewPrivileges"),
        oom_score_adj=_number(node, "oomScoreAdj", _OOM_SCORE),
        apparmor_profile=_text(node, "apparmorProfile"),
        selinux_label=_text(node, "selinuxLabel"),
    )


def _user(node: Node) -> User:
    return User(
        uid=_number(node, "uid", UINT32) or 0,
        gid=_number(node, "gid", UINT32) or 0,
        umask=_number(node, "umask", (0, 0o777)),
        additional_gids=_list(node, "additionalGids", lambda item: item.number(UINT32)),
    )


def _capabilities(node: Node) -> CapabilitySets:
    return CapabilitySets(
        bounding=_texts(node, "bounding"),
        effective=_texts(node, "effective"),
        inheritable=_texts(node, "inheritable"),
        permitted=_texts(node, "permitted"),
        ambient=_texts(node, "ambient"),
    )


def _rlimit(node: Node) -> Rlimit:
    soft, hard = node.need("soft").number(UINT64), node.need("hard").number(UINT64)
    return Rlimit(node.need("type").text(), _unlimited(soft), _unlimited(hard))


def _unlimited(value: int) -> int:
    return -1 if value == _RLIM_INFINITY else value


def _mount(node: Node) -> OciMount:
    return OciMount(
        destination=_not_empty(node.need("destination")),
        type=_text(node, "type"),
        source=_text(node, "source"),
        options=_texts(node, "options"),
        uid_mappings=_list(node, "uidMappings", _mapping),
        gid_mappings=_list(node, "gidMappings", _mapping),
    )


def _mapping(node: Node) -> OciIdMapping:
    return OciIdMapping(
        container_id=node.need("containerID").number(UINT32),
        host_id=node.need("hostID").number(UINT32),
        size=node.need("size").number(UINT32),
    )


def _linux(node: Node) -> Linux:
    seccomp = node.get("seccomp")
    return Linux(
        namespaces=_namespaces(node),
        uid_mappings=_list(node, "uidMappings", _mapping),
        gid_mappings=_list(node, "gidMappings", _mapping),
        devices=_list(node, "devices", _device),
        cgroups_path=_text(node, "cgroupsPath"),
        resources=_resources(_child(node, "resources")),
        rootfs_propagation=_text(node, "rootfsPropagation"),
        seccomp=None if seccomp is None else _seccomp(seccomp),
        sysctl=_strings(node, "sysctl"),
        masked_paths=_texts(node, "maskedPaths"),
        readonly_paths=_texts(node, "readonlyPaths"),
        mount_label=_text(node, "mountLabel"),
    )


def _namespaces(node: Node) -> tuple[Namespace, ...]:
    found: dict[str, Namespace] = {}
    for item in _nodes(node, "namespaces"):
        kind = item.need("type").text()
        if kind not in _NAMESPACES:
            raise InvalidArgument(f"{item.path}.type: {kind[:40]!r} is no kind of namespace")
        if kind in found:
            raise InvalidArgument(f"{item.path}.type: {kind} is given twice")
        found[kind] = Namespace(kind, _text(item, "path"))
    return tuple(found.values())


def _device(node: Node) -> OciDevice:
    return OciDevice(
        path=_not_empty(node.need("path")),
        type=_not_empty(node.need("type")),
        major=_number(node, "major", INT64) or 0,
        minor=_number(node, "minor", INT64) or 0,
        file_mode=_number(node, "fileMode", UINT32),
        uid=_number(node, "uid", UINT32),
        gid=_number(node, "gid", UINT32),
    )


def _resources(node: Node) -> OciResources:
    memory, cpu = _child(node, "memory"), _child(node, "cpu")
    return OciResources(
        devices=_list(node, "devices", _device_rule),
        memory=MemoryLimits(
            limit=_number(memory, "limit", INT64),
            reservation=_number(memory, "reservation", INT64),
            swap=_number(memory, "swap", INT64),
            swappiness=_number(memory, "swappiness", (0, 100)),
            disable_oom_killer=_flag(memory, "disableOOMKiller"),
        ),
        cpu=CpuLimits(
            shares=_number(cpu, "shares", UINT64),
            quota=_number(cpu, "quota", INT64),
            period=_number(cpu, "period", UINT64),
            cpus=_text(cpu, "cpus"),
            mems=_text(cpu, "mems"),
        ),
        pids_limit=_number(_child(node, "pids"), "limit", INT64),
        hugepage_limits=_list(node, "hugepageLimits", _hugepage_limit),
        unified=_strings(node, "unified"),
    )


def _device_rule(node: Node) -> DeviceRule:
    return DeviceRule(
        allow=node.need("allow").flag(),
        type=_text(node, "type") or "a",
        major=_any_number(node, "major"),
        minor=_any_number(node, "minor"),
        access=_text(node, "access") or "rwm",
    )


def _any_number(node: Node, key: str) -> int | None:
    """The field writes -1 where the specification wants the number to be absent."""
    found = _number(node, key, INT64)
    return None if found == -1 else found


def _hugepage_limit(node: Node) -> OciHugepageLimit:
    return OciHugepageLimit(_not_empty(node.need("pageSize")), node.need("limit").number(UINT64))


def _seccomp(node: Node) -> Seccomp:
    return Seccomp(
        default_action=node.need("defaultAction").text(),
        default_errno_ret=_number(node, "defaultErrnoRet", UINT32),
        architectures=_texts(node, "architectures"),
        flags=_texts(node, "flags"),
        syscalls=_list(node, "syscalls", _seccomp_rule),
    )


def _seccomp_rule(node: Node) -> SeccompRule:
    return SeccompRule(
        names=node.need("names").texts(MAX_ITEMS),
        action=node.need("action").text(),
        errno_ret=_number(node, "errnoRet", UINT32),
        args=_list(node, "args", _seccomp_arg),
    )


def _seccomp_arg(node: Node) -> SeccompArg:
    return SeccompArg(
        index=node.need("index").number((0, 5)),
        value=node.need("value").number(UINT64),
        op=node.need("op").text(),
        value_two=_number(node, "valueTwo", UINT64) or 0,
    )


def _hooks(node: Node) -> Hooks:
    return Hooks(
        prestart=_list(node, "prestart", _hook),
        create_runtime=_list(node, "createRuntime", _hook),
        create_container=_list(node, "createContainer", _hook),
        start_container=_list(node, "startContainer", _hook),
        poststart=_list(node, "poststart", _hook),
        poststop=_list(node, "poststop", _hook),
    )


def _hook(node: Node) -> Hook:
    path = node.need("path")
    if not path.text().startswith("/"):
        raise InvalidArgument(f"{path.path}: {path.text()[:80]!r} must be absolute")
    return Hook(
        path=path.text(),
        args=_texts(node, "args"),
        env=_texts(node, "env"),
        timeout_s=_number(node, "timeout", (1, _INT32[1])),
    )


def _child(node: Node, key: str) -> Node:
    """An object that is absent is read as an empty one."""
    found = node.get(key)
    return Node(_EMPTY, f"{node.path}.{key}" if node.path else key) if found is None else found


def _nodes(node: Node, key: str) -> list[Node]:
    found = node.get(key)
    return [] if found is None else list(found.items(MAX_ITEMS))


def _list(node: Node, key: str, read: Callable[[Node], _T]) -> tuple[_T, ...]:
    return tuple(read(item) for item in _nodes(node, key))


def _texts(node: Node, key: str) -> tuple[str, ...]:
    found = node.get(key)
    return () if found is None else found.texts()


def _strings(node: Node, key: str) -> dict[str, str]:
    found = node.get(key)
    return {} if found is None else {name: value.text() for name, value in found.members()}


def _text(node: Node, key: str, default: str = "") -> str:
    found = node.get(key)
    return default if found is None else found.text()


def _flag(node: Node, key: str) -> bool:
    found = node.get(key)
    return False if found is None else found.flag()


def _number(node: Node, key: str, bounds: tuple[int, int]) -> int | None:
    found = node.get(key)
    return None if found is None else found.number(bounds)


def _not_empty(node: Node) -> str:
    if not node.text():
        raise InvalidArgument(f"{node.path}: must not be empty")
    return node.text()
