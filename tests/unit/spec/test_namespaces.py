"""Namespaces: new ones, the sandbox's, a target's, the host's."""

import pytest

from polypod.plugin.errors import InvalidArgument
from polypod.plugin.oci import OciIdMapping
from polypod.plugin.requests import IdMapping, NamespaceMode, NamespaceOptions, UserNamespace
from polypod.spec.namespaces import (
    container_namespaces,
    has_user_namespace,
    host_id,
    id_mappings,
    oci_mappings,
)

POD, CONTAINER, NODE, TARGET = (
    NamespaceMode.POD,
    NamespaceMode.CONTAINER,
    NamespaceMode.NODE,
    NamespaceMode.TARGET,
)
PATHS = {kind: f"fd:{kind}" for kind in ("network", "uts", "ipc", "pid", "user")}
RANGE = (IdMapping(100_000, 0, 65_536),)
USERNS = UserNamespace(POD, RANGE, RANGE)


def found(sandbox=None, container=None, *, paths=PATHS, privileged=False):
    sandbox = sandbox or NamespaceOptions()
    result = container_namespaces(sandbox, container or sandbox, paths, privileged=privileged)
    assert len({item.type for item in result}) == len(result)
    return {item.type: item.path for item in result}


def test_pod_namespaces_are_joined():
    assert found() == {
        "mount": "",
        "network": "fd:network",
        "uts": "fd:uts",
        "ipc": "fd:ipc",
        "pid": "fd:pid",
        "cgroup": "",
    }


def test_what_does_not_exist_is_made():
    assert set(found(paths={}).values()) == {""}


def test_host_namespaces_are_left_out():
    namespaces = found(NamespaceOptions(network=NODE, ipc=NODE, pid=NODE))
    assert set(namespaces) == {"mount", "cgroup"}


def test_only_pid_is_the_containers_own_choice():
    sandbox = NamespaceOptions(pid=POD)
    namespaces = found(sandbox, NamespaceOptions(network=NODE, ipc=NODE, pid=CONTAINER))
    assert namespaces["network"] == "fd:network"
    assert namespaces["ipc"] == "fd:ipc"
    assert namespaces["pid"] == ""
    assert "pid" not in found(sandbox, NamespaceOptions(pid=NODE))


def test_target():
    container = NamespaceOptions(pid=TARGET, target_id="abc")
    assert found(container=container, paths={**PATHS, "target": "fd:t"})["pid"] == "fd:t"
    with pytest.raises(InvalidArgument, match="'abc'"):
        found(container=container)


def test_privileged_sees_the_hosts_cgroups():
    assert "cgroup" not in found(privileged=True)
    # Root of a user namespace may not mount them.
    assert "cgroup" in found(NamespaceOptions(userns=USERNS), privileged=True)


def test_user_namespace():
    with_user = NamespaceOptions(userns=USERNS)
    assert found(with_user)["user"] == "fd:user"
    assert has_user_namespace(with_user)
    assert not has_user_namespace(NamespaceOptions(userns=UserNamespace(NODE)))
    assert not has_user_namespace(NamespaceOptions())


def test_mappings():
    wanted = (OciIdMapping(0, 100_000, 65_536),)
    assert id_mappings(USERNS) == (wanted, wanted)
    assert id_mappings(None) == id_mappings(UserNamespace(NODE, RANGE, RANGE)) == ((), ())


@pytest.mark.parametrize(
    "userns",
    [
        UserNamespace(POD),
        UserNamespace(POD, RANGE),
        UserNamespace(CONTAINER, RANGE, RANGE),
        UserNamespace(TARGET, RANGE, RANGE),
    ],
)
def test_e23_user_namespace_that_cannot_be_made_is_refused(userns):
    with pytest.raises(InvalidArgument, match="userns_options"):
        id_mappings(userns)


@pytest.mark.parametrize(
    ("ranges", "said"),
    [
        ((IdMapping(1000, 1, 10),), "uids: container id 0 is not mapped"),
        ((IdMapping(1000, 0, 10), IdMapping(2000, 9, 1)), "container_id 9 is in two ranges"),
        ((IdMapping(1000, 0, 10), IdMapping(1009, 10, 1)), "host_id 1009 is in two ranges"),
        (tuple(IdMapping(n, n, 1) for n in range(341)), "340"),
    ],
)
def test_mappings_that_no_kernel_takes_are_refused(ranges, said):
    with pytest.raises(InvalidArgument, match=said):
        id_mappings(UserNamespace(POD, ranges, ranges))


def test_ids_on_the_host():
    ranges = (OciIdMapping(0, 1000, 10), OciIdMapping(100, 5, 1))
    assert [host_id(each, ranges) for each in (0, 9, 10, 100)] == [1000, 1009, None, 5]


@pytest.mark.parametrize(
    "mapping",
    [
        IdMapping(0, 0, 0),
        IdMapping(0, 0, -1),
        IdMapping(-1, 0, 1),
        IdMapping(0, -1, 1),
        IdMapping(2**32 - 1, 0, 1),
        IdMapping(0, 0, 2**32),
        IdMapping(0, 2**32 - 10, 10),
        IdMapping(2**64, 0, 1),
    ],
)
def test_e8_ranges_stay_within_32_bits(mapping):
    with pytest.raises(InvalidArgument, match="range of ids"):
        oci_mappings((IdMapping(5, 0, 1), mapping), "uids")


def test_largest_range():
    assert oci_mappings((IdMapping(0, 0, 2**32 - 1),), "uids") == (OciIdMapping(0, 0, 2**32 - 1),)
