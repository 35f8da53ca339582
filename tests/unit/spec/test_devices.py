"""Devices of a container: nodes and rules."""

import pytest

from polypod.plugin.errors import InvalidArgument
from polypod.plugin.oci import DeviceRule, OciDevice
from polypod.spec.devices import (
    DEFAULT_DEVICES,
    HostDevice,
    device_access,
    device_nodes,
    device_rules,
)


def test_default_devices_are_the_specifications():
    found = {(item.path, item.major, item.minor) for item in DEFAULT_DEVICES}
    assert found == {
        ("/dev/null", 1, 3),
        ("/dev/zero", 1, 5),
        ("/dev/full", 1, 7),
        ("/dev/random", 1, 8),
        ("/dev/urandom", 1, 9),
        ("/dev/tty", 5, 0),
    }
    assert {item.file_mode for item in DEFAULT_DEVICES} == {0o666}


def test_nodes_asked_for_win_over_the_hosts():
    host = [HostDevice("/dev/sda", "b", 8, 0), HostDevice("/dev/null", "c", 1, 3)]
    asked = [HostDevice("/dev/sda", "b", 8, 16, 0o100640, 1, 2), HostDevice("dev/x/", "c", 9, 9)]
    assert device_nodes(asked, host) == (
        OciDevice("/dev/sda", "b", 8, 16, 0o640, 1, 2),
        OciDevice("/dev/x", "c", 9, 9, 0o600, 0, 0),
    )


def test_rules_begin_with_a_refusal_and_end_with_what_is_asked():
    rules = device_rules(
        [HostDevice("/dev/fuse", "c", 10, 229, access="mrw"), HostDevice("/dev/p", "p", 0, 0)],
        privileged=False,
    )
    assert rules[0] == DeviceRule(allow=False)
    assert rules[-1] == DeviceRule(True, "c", 10, 229, "rwm")
    assert not [rule for rule in rules if rule.type == "p"]
    assert not [rule for rule in rules if rule.type == "b" and rule.access != "m"]


def test_privileged_may_use_all():
    assert device_rules([HostDevice("/dev/x", "c", 1, 1)], privileged=True) == (DeviceRule(True),)


@pytest.mark.parametrize(("given", "wanted"), [("r", "r"), ("mwr", "rwm"), ("wr", "rw")])
def test_access_in_the_kernels_order(given, wanted):
    assert device_access(given) == wanted


@pytest.mark.parametrize("access", ["", "x", "rr", "rwmx", "R", "r w"])
def test_malformed_access_is_refused(access):
    with pytest.raises(InvalidArgument, match="permissions"):
        device_access(access)
    with pytest.raises(InvalidArgument, match="permissions"):
        device_nodes([HostDevice("/dev/x", "c", 1, 1, access=access)])


@pytest.mark.parametrize("path", ["", "/", "/..", "../dev/x", "/dev/x\0"])
def test_e22_node_stays_inside_the_root(path):
    with pytest.raises(InvalidArgument, match="container_path"):
        device_nodes([HostDevice(path, "c", 1, 1)])


def test_unknown_type_is_refused():
    with pytest.raises(InvalidArgument, match="type 's'"):
        device_nodes([HostDevice("/dev/x", "s", 1, 1)])
