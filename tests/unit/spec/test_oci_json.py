"""config.json: what is written is read back, what is wrong is named by its path."""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypod.plugin import oci
from polypod.plugin.errors import InvalidArgument
from polypod.plugin.oci import (
    CapabilitySets,
    DeviceRule,
    OciConfig,
    Process,
    Rlimit,
    User,
)
from polypod.spec.oci_json import from_json, parse_config, to_json

# Dataclasses with bounds that their types do not tell.
TEXT = st.text(max_size=6)
UINT32 = st.integers(0, 2**32 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
UINT64 = st.integers(0, 2**64 - 1)
NOT_EMPTY = st.text(min_size=1, max_size=6)
ABSOLUTE = TEXT.map(lambda text: f"/{text}")
SPECIAL = {
    (oci.Process, "cwd"): ABSOLUTE,
    (oci.Process, "oom_score_adj"): st.none() | st.integers(-1000, 1000),
    (oci.User, "umask"): st.none() | st.integers(0, 0o777),
    (oci.Rlimit, "soft"): st.integers(-1, 2**64 - 2),
    (oci.Rlimit, "hard"): st.integers(-1, 2**64 - 2),
    (oci.OciDevice, "major"): INT64,
    (oci.OciDevice, "minor"): INT64,
    (oci.OciDevice, "type"): NOT_EMPTY,
    (oci.OciDevice, "path"): NOT_EMPTY,
    (oci.OciMount, "destination"): NOT_EMPTY,
    (oci.DeviceRule, "major"): st.none() | st.integers(0, 2**63 - 1),
    (oci.DeviceRule, "minor"): st.none() | st.integers(0, 2**63 - 1),
    (oci.DeviceRule, "type"): NOT_EMPTY,
    (oci.DeviceRule, "access"): NOT_EMPTY,
    (oci.MemoryLimits, "limit"): st.none() | INT64,
    (oci.MemoryLimits, "reservation"): st.none() | INT64,
    (oci.MemoryLimits, "swap"): st.none() | INT64,
    (oci.MemoryLimits, "swappiness"): st.none() | st.integers(0, 100),
    (oci.CpuLimits, "shares"): st.none() | UINT64,
    (oci.CpuLimits, "period"): st.none() | UINT64,
    (oci.CpuLimits, "quota"): st.none() | INT64,
    (oci.OciResources, "pids_limit"): st.none() | INT64,
    (oci.OciHugepageLimit, "limit"): UINT64,
    (oci.OciHugepageLimit, "page_size"): NOT_EMPTY,
    (oci.SeccompArg, "index"): st.integers(0, 5),
    (oci.SeccompArg, "value"): UINT64,
    (oci.SeccompArg, "value_two"): UINT64,
    (oci.Hook, "path"): ABSOLUTE,
    (oci.Hook, "timeout_s"): st.none() | st.integers(1, 2**31 - 1),
    (oci.OciConfig, "oci_version"): st.sampled_from(["1.0.2", "1.3.0", "1.2.1-dev"]),
    (oci.OciConfig, "root_path"): NOT_EMPTY,
    (oci.Linux, "namespaces"): st.dictionaries(
        st.sampled_from(["pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"]), TEXT
    ).map(lambda found: tuple(oci.Namespace(kind, path) for kind, path in found.items())),
}


def strategy(kind):
    """Values for a type of the dataclasses: every field is covered, also those that come later."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        fields = {
            field.name: SPECIAL[kind, field.name]
            if (kind, field.name) in SPECIAL
            else strategy(hints[field.name])
            for field in dataclasses.fields(kind)
        }
        return st.builds(kind, **fields)
    if origin is tuple and inner[-1] is Ellipsis:
        return st.lists(strategy(inner[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*(strategy(item) for item in inner))
    if origin in (types.UnionType, typing.Union):
        return st.one_of(*(strategy(item) for item in inner))
    if origin is Mapping:
        return st.dictionaries(TEXT, TEXT, max_size=2)
    return {str: TEXT, int: UINT32, bool: st.booleans(), types.NoneType: st.none()}[kind]


@settings(max_examples=60, deadline=None)
@given(strategy(OciConfig))
def test_round_trip(config):
    text = json.dumps(to_json(config))
    assert from_json(json.loads(text)) == config
    assert parse_config(text.encode()) == config


def document(**members):
    return {"ociVersion": "1.3.0", "root": {"path": "rootfs"}, **members}


def test_least_document_gives_defaults():
    assert from_json(document()) == OciConfig(process=Process())
    assert to_json(OciConfig(process=Process())) == document(
        process={"cwd": "/", "user": {"uid": 0, "gid": 0}}
    )


def test_names_are_the_specifications():
    config = OciConfig(
        process=Process(
            args=("sh",),
            env=("A=\udcff",),
            console_size=(24, 80),
            user=User(1, 2, 0o22, (3,)),
            capabilities=CapabilitySets(),
            rlimits=(Rlimit("RLIMIT_CORE", 0, -1),),
            no_new_privileges=True,
            oom_score_adj=0,
        ),
        linux=oci.Linux(
            cgroups_path="/a",
            resources=oci.OciResources(
                devices=(DeviceRule(False),),
                memory=oci.MemoryLimits(limit=0, disable_oom_killer=True),
                pids_limit=-1,
            ),
        ),
    )
    written = to_json(config)
    assert written["process"] == {
        "cwd": "/",
        "user": {"uid": 1, "gid": 2, "umask": 0o22, "additionalGids": [3]},
        "args": ["sh"],
        "env": ["A=\udcff"],
        "consoleSize": {"height": 24, "width": 80},
        "rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 2**64 - 1}],
        "noNewPrivileges": True,
        "oomScoreAdj": 0,
        "capabilities": {
            "bounding": [],
            "effective": [],
            "inheritable": [],
            "permitted": [],
            "ambient": [],
        },
    }
    assert written["linux"] == {
        "cgroupsPath": "/a",
        "resources": {
            "devices": [{"allow": False, "type": "a", "access": "rwm"}],
            "memory": {"limit": 0, "disableOOMKiller": True},
            "pids": {"limit": -1},
        },
    }


def test_unknown_members_and_nulls_are_ignored():
    config = from_json(
        document(
            future={"a": 1},
            mounts=None,
            hooks=None,
            process={
                "cwd": "/",
                "user": {"uid": 5, "username": "x"},
                "scheduler": {},
                "args": None,
            },
            linux={"intelRdt": {}, "resources": {"blockIO": {"weight": 10}}, "seccomp": None},
        )
    )
    assert config == OciConfig(process=Process(user=User(uid=5)))


def test_device_rules_of_the_field():
    rules = [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 5, "minor": -1, "access": "rw"},
    ]
    config = from_json(document(linux={"resources": {"devices": rules}}))
    assert config.linux.resources.devices == (
        DeviceRule(False),
        DeviceRule(True, "c", 5, None, "rw"),
    )


BAD = [
    ([], "the document: must be an object"),
    ({}, "ociVersion: is missing"),
    ({"ociVersion": 1}, "ociVersion: must be a string, not a whole number"),
    ({"ociVersion": "0.2.0"}, "ociVersion: '0.2.0' is no version 1.x"),
    ({"ociVersion": "1.0.0"}, "root: is missing"),
    (document(root={}), "root.path: is missing"),
    (document(root={"path": ""}), "root.path: must not be empty"),
    (document(root={"path": "x", "readonly": 1}), "root.readonly: must be true or false"),
    (document(process={"cwd": "a"}), "process.cwd: 'a' must be absolute"),
    (document(process={"args": "sh"}), "process.args: must be a list, not a string"),
    (document(process={"args": ["sh", 1]}), r"process.args\[1\]: must be a string"),
    (document(process={"user": {"uid": -1}}), "process.user.uid: -1 is not from 0"),
    (document(process={"user": {"uid": 2**32}}), "process.user.uid: 4294967296"),
    (document(process={"user": {"gid": "0"}}), "process.user.gid: must be a whole number"),
    (document(process={"consoleSize": {"height": 1}}), "process.consoleSize.width: is missing"),
    (document(process={"oomScoreAdj": 1001}), "process.oomScoreAdj: 1001"),
    (document(process={"rlimits": [{"type": "X", "soft": 1}]}), r"rlimits\[0\].hard: is missing"),
    (document(mounts=[{}]), r"mounts\[0\].destination: is missing"),
    (document(mounts=[{"destination": "/x"}] * 70_000), "mounts: has 70000 items, at most 4096"),
    (document(mounts=[{"destination": "/x", "options": "ro"}]), r"mounts\[0\].options"),
    (document(linux=[]), "linux: must be an object, not a list"),
    (document(linux={"namespaces": [{"type": "net"}]}), r"namespaces\[0\].type: 'net'"),
    (
        document(linux={"namespaces": [{"type": "pid"}, {"type": "pid"}]}),
        r"namespaces\[1\].type: pid is given twice",
    ),
    (
        document(linux={"uidMappings": [{"containerID": 0, "hostID": 0}]}),
        r"linux.uidMappings\[0\].size: is missing",
    ),
    (document(linux={"sysctl": {"a": 1}}), "linux.sysctl.a: must be a string"),
    (document(linux={"resources": {"memory": {"limit": "1G"}}}), "resources.memory.limit"),
    (document(linux={"resources": {"memory": {"limit": 1.5}}}), "memory.limit: must be a whole"),
    (document(linux={"resources": {"pids": {"limit": 2**63}}}), "resources.pids.limit"),
    (document(linux={"resources": {"devices": [{}]}}), r"devices\[0\].allow: is missing"),
    (document(linux={"seccomp": {}}), "linux.seccomp.defaultAction: is missing"),
    (
        document(linux={"seccomp": {"defaultAction": "x", "syscalls": [{"action": "x"}]}}),
        r"linux.seccomp.syscalls\[0\].names: is missing",
    ),
    (document(hooks={"prestart": [{"path": "a"}]}), r"hooks.prestart\[0\].path: 'a'"),
    (
        document(hooks={"poststop": [{"path": "/a", "timeout": 0}]}),
        r"hooks.poststop\[0\].timeout: 0",
    ),
    (document(annotations={"a": None, "b": 1}), "annotations.b: must be a string"),
]


@pytest.mark.parametrize(("data", "words"), BAD, ids=[words[:50] for _, words in BAD])
def test_e8_wrong_values_are_refused_naming_the_path(data, words):
    with pytest.raises(InvalidArgument, match=words):
        from_json(data)


def test_e8_oversize_config_is_refused():
    text = json.dumps(document(annotations={"a": "x" * (17 << 20)})).encode()
    with pytest.raises(InvalidArgument, match="at most 16777216 are read"):
        parse_config(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
PLACES = ["process", "mounts", "linux", "hooks", "annotations", "root", "hostname", "ociVersion"]


@settings(max_examples=60, deadline=None)
@given(strategy(OciConfig), st.sampled_from(PLACES), JSON)
def test_anything_in_any_place_is_read_or_refused(config, place, value):
    data = to_json(config)
    data[place] = value
    words = ""
    try:
        assert isinstance(from_json(data), OciConfig)
    except InvalidArgument as error:
        words = str(error)
    assert not words or place in words
