"""The documents that a runtime reads."""

from __future__ import annotations

import json

import pytest

from polypod.plugin import InvalidArgument, Unsupported
from polypod.plugin.oci import (
    Linux,
    MemoryLimits,
    Namespace,
    OciConfig,
    OciResources,
    Process,
)
from polypod_oci.config import bundle_config, config_text, process_text, resources_text

PATHS = {"sandbox:network": "/proc/7/fd/9", "container:abc": "/proc/8/ns/pid"}


def config(*namespaces: Namespace) -> OciConfig:
    return OciConfig(Process(("true",)), linux=Linux(namespaces=namespaces))


def made(source: OciConfig) -> OciConfig:
    return bundle_config(source, version="1.0.0", root="/b/rootfs", cgroup="/p/c", namespaces=PATHS)


def test_names_become_paths_that_a_runtime_can_open():
    document = made(
        config(
            Namespace("mount"),
            Namespace("network", "sandbox:network"),
            Namespace("pid", "container:abc"),
            Namespace("ipc", "/proc/1/ns/ipc"),
        )
    )
    assert {each.type: each.path for each in document.linux.namespaces} == {
        "mount": "",
        "network": "/proc/7/fd/9",
        "pid": "/proc/8/ns/pid",
        "ipc": "/proc/1/ns/ipc",
    }


def test_version_root_and_cgroup_are_the_handlers():
    text = json.loads(config_text(made(config())))
    assert text["ociVersion"] == "1.0.0"
    assert text["root"]["path"] == "/b/rootfs"
    assert text["linux"]["cgroupsPath"] == "/p/c"


def test_a_namespace_that_is_not_there_is_refused():
    with pytest.raises(InvalidArgument, match="sandbox:uts"):
        made(config(Namespace("uts", "sandbox:uts")))


def test_bytes_that_json_cannot_hold_are_refused_not_changed():
    with pytest.raises(Unsupported, match="UTF-8"):
        config_text(OciConfig(Process(("true",), ("RAW=\udcff",))))
    with pytest.raises(Unsupported, match="UTF-8"):
        process_text(Process(("\udcfe",)))


def test_other_languages_stay_as_they_are():
    assert "Größe=10 µm".encode() in config_text(OciConfig(Process(("true",), ("Größe=10 µm",))))


def test_a_process_alone():
    found = json.loads(process_text(Process(("sh", "-c", "x"), ("A=b",), "/tmp", terminal=True)))
    assert found["args"] == ["sh", "-c", "x"]
    assert found["env"] == ["A=b"]
    assert (found["cwd"], found["terminal"]) == ("/tmp", True)
    assert "ociVersion" not in found


def test_resources_alone():
    wanted = OciResources(memory=MemoryLimits(limit=1 << 20), pids_limit=3)
    assert json.loads(resources_text(wanted)) == {
        "memory": {"limit": 1 << 20},
        "pids": {"limit": 3},
    }
    assert json.loads(resources_text(OciResources())) == {}
