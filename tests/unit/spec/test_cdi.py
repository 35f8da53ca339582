"""Files of CDI devices: read strictly, merged in order, refused where they ask for what nobody does."""

from __future__ import annotations

import json

import pytest

from polypod.plugin.errors import InvalidArgument, Unsupported
from polypod.plugin.oci import OciConfig, OciMount, Process, User
from polypod.spec import cdi, json_reader
from polypod.spec.cdi import CdiNode, Edits
from polypod.spec.yaml_reader import load_yaml

KIND = "vendor.com/class"


def document(**changes):
    """A file with one device, ``one``."""
    edits = changes.pop("edits", {"env": ["A=1"]})
    device = {"name": "one", "containerEdits": edits, **changes.pop("device", {})}
    return {"cdiVersion": "0.6.0", "kind": KIND, "devices": [device], **changes}


def read(found):
    return cdi.read_spec(json_reader.load(json.dumps(found).encode(), "file", 1 << 20))


def only(found, device="one"):
    return cdi.merge([f"{KIND}={device}"], {f"{KIND}={device}": read(found)})


def test_a_whole_file():
    node = {
        "path": "/dev/x",
        "hostPath": "/dev/y",
        "type": "c",
        "major": 1,
        "minor": 3,
        "fileMode": 0o640,
        "permissions": "rw",
        "uid": 7,
        "gid": 8,
    }
    mount = {"hostPath": "/opt/lib", "containerPath": "/lib/x", "options": ["ro"]}
    edits = {"deviceNodes": [node], "mounts": [mount], "additionalGids": [9], "hooks": []}
    found = only(document(edits=edits, containerEdits={"env": ["ALL=1"]}))
    assert found == Edits(
        ("ALL=1",),
        (CdiNode("/dev/x", "/dev/y", "c", 1, 3, 0o640, "rw", 7, 8),),
        (OciMount("/lib/x", "bind", "/opt/lib", ("rbind", "rprivate", "ro")),),
        (9,),
    )


def test_what_a_file_leaves_out():
    edits = {
        "deviceNodes": [{"path": "/dev/x"}],
        "mounts": [{"hostPath": "/a", "containerPath": "/b"}],
    }
    found = only(document(edits=edits))
    assert found.nodes == (CdiNode("/dev/x", "/dev/x"),)
    assert found.mounts[0].options == ("rbind", "rprivate", "ro", "nosuid", "nodev")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cdiVersion": "0.2.0"}, "cdiVersion"),
        ({"cdiVersion": "2.0.0"}, "cdiVersion"),
        ({"kind": "class"}, "kind"),
        ({"kind": "vendor/../x"}, "kind"),
        ({"what": 1}, "what: is unknown"),
        ({"device": {"name": "../one"}}, "name"),
        ({"device": {"name": ""}}, "name"),
        ({"edits": {"env": ["nothing"]}}, "no NAME=value"),
        ({"edits": {"env": ["=x"]}}, "no NAME=value"),
        ({"edits": {"deviceNodes": [{"path": "/dev/x", "type": "z"}]}}, "type"),
        ({"edits": {"deviceNodes": [{"path": "/../x"}]}}, r"deviceNodes\[0\].path"),
        ({"edits": {"deviceNodes": [{"path": "/dev/x", "permissions": "x"}]}}, "permissions"),
        ({"edits": {"deviceNodes": [{"path": "/dev/x", "fileMode": -1}]}}, "fileMode"),
        ({"edits": {"mounts": [{"hostPath": "a", "containerPath": "/b"}]}}, "hostPath"),
        ({"edits": {"mounts": [{"hostPath": "/a", "containerPath": "/"}]}}, "containerPath"),
        ({"edits": {"additionalGids": [0]}}, "additionalGids"),
        ({"edits": {"surprise": 1}}, "surprise: is unknown"),
    ],
)
def test_malformed_files_are_refused(changes, said):
    with pytest.raises(InvalidArgument, match=said):
        read(document(**changes))


def test_a_device_that_is_there_twice():
    found = document()
    with pytest.raises(InvalidArgument, match="there twice"):
        read({**found, "devices": found["devices"] * 2})


@pytest.mark.parametrize(
    ("edits", "word"),
    [
        ({"hooks": [{"hookName": "createContainer", "path": "/bin/x"}]}, "hooks"),
        ({"intelRdt": {"closID": "x"}}, "intelRdt"),
        ({"netDevices": [{"hostInterfaceName": "eth9", "name": "x"}]}, "network devices"),
    ],
)
def test_e23_what_nobody_does_is_refused_with_the_reason(edits, word):
    with pytest.raises(Unsupported, match=word):
        only(document(edits=edits))
    with pytest.raises(Unsupported, match=word):
        only(document(containerEdits=edits))


def test_what_a_file_says_for_all_counts_once():
    second = {"name": "two", "containerEdits": {"env": ["B=2"]}}
    found = document(containerEdits={"env": ["ALL=1"]})
    spec = read({**found, "devices": [*found["devices"], second]})
    names = [f"{KIND}=one", f"{KIND}=two", f"{KIND}=one"]
    assert cdi.merge(names, dict.fromkeys(names, spec)).env == ("ALL=1", "A=1", "B=2")


@pytest.mark.parametrize(
    "name", ["", "one", "vendor=one", "vendor/class", "v/c=", "v/c=../x", "/c=x"]
)
def test_names_are_fully_qualified(name):
    with pytest.raises(InvalidArgument, match="vendor/class=name"):
        cdi.check_name(name)


def test_a_config_is_changed():
    config = OciConfig(
        Process(("x",), env=("A=old", "B=2"), user=User(0, 0, additional_gids=(5,))),
        mounts=(OciMount("/proc"), OciMount("/proc/deep/er"), OciMount("/lib")),
    )
    edits = Edits(("A=new", "C=3"), (), (OciMount("/lib", "bind"), OciMount("/lib/x")), (5, 6))
    found = cdi.apply(config, edits)
    assert found.process.env == ("A=new", "B=2", "C=3")
    assert found.process.user.additional_gids == (5, 6)
    assert [(each.destination, each.type) for each in found.mounts] == [
        ("/proc", ""),
        ("/lib", "bind"),
        ("/lib/x", ""),
        ("/proc/deep/er", ""),
    ]


def test_yaml():
    text = b"cdiVersion: 0.6.0\nkind: vendor.com/class\ndevices:\n- name: '0'\n  containerEdits: {env: [A=1]}\n"
    assert cdi.read_spec(load_yaml(text, "file", 1 << 20)).devices["0"].env == ("A=1",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"a: 1\na: 2\n", "stands twice"),
        (b"a: [", "no YAML"),
        (b"a: !!python/object/apply:os.system [id]\n", "no YAML"),
        (b"\xff\xfe\xfa", "no YAML"),
        (b"x" * 101, "at most 100"),
        (b"[" * 50, "no YAML"),
    ],
    ids=["twice", "cut", "program", "bytes", "long", "deep"],
)
def test_yaml_that_is_none(text, said):
    with pytest.raises(InvalidArgument, match=said):
        load_yaml(text, "file", 100)
