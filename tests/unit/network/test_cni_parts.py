"""Arguments for plugins, results from them, and the notes in between."""

import pytest

from polypod.plugin.errors import InvalidArgument
from polypod.plugin.ids import SandboxId
from polypod.plugin.network import AttachRequest
from polypod.plugin.requests import PodMetadata, PortMapping, Protocol
from polypod_network.cni.arguments import (
    BANDWIDTH,
    capability_arguments,
    check_cidrs,
    cni_args,
)
from polypod_network.cni.chain import derived
from polypod_network.cni.configuration import parse
from polypod_network.cni.notes import Note, Notes
from polypod_network.cni.results import addresses

ID = SandboxId("ab" * 32)


def request(*ports, name="web-0", **annotations):
    metadata = PodMetadata(name, "uid-1", "default")
    return AttachRequest(ID, metadata, -1, -1, port_mappings=ports, annotations=annotations)


# Arguments


def test_cni_args_carry_the_names_of_kubernetes():
    assert cni_args(request()).split(";") == [
        "IgnoreUnknown=1",
        "K8S_POD_NAMESPACE=default",
        "K8S_POD_NAME=web-0",
        f"K8S_POD_INFRA_CONTAINER_ID={ID}",
        "K8S_POD_UID=uid-1",
    ]


@pytest.mark.parametrize("name", ["a;K8S_POD_NAME=b", "a=b", "a\0b", "a\nb"])
def test_a_name_cannot_smuggle_in_an_argument(name):
    with pytest.raises(InvalidArgument, match="K8S_POD_NAME"):
        cni_args(request(name=name))


def test_host_ports_become_port_mappings():
    found = capability_arguments(
        request(PortMapping(Protocol.UDP, 53, 5353, "192.0.2.1"), PortMapping(Protocol.TCP, 80))
    )
    assert found["portMappings"] == [
        {"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"}
    ]
    assert found["aliases"] == ["web-0"]


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("10M", 10_000_000),
        ("1.5G", 1_500_000_000),
        ("1Mi", 1 << 20),
        ("64k", 64_000),
        ("2000", 2000),
    ],
)
def test_bandwidth_comes_from_the_annotations(text, bits):
    found = capability_arguments(request(**{BANDWIDTH[0]: text}))["bandwidth"]
    assert found["ingressRate"] == bits
    assert found["ingressBurst"] > 0
    assert "egressRate" not in found


@pytest.mark.parametrize("text", ["fast", "-1M", "1", "9E", "1Zi", "1mi", ""])
def test_a_bandwidth_that_is_none_is_refused(text):
    with pytest.raises(InvalidArgument, match=r"egress-bandwidth"):
        capability_arguments(request(**{BANDWIDTH[1]: text}))


def test_pod_cidrs_become_ranges():
    cidrs = check_cidrs(["10.1.0.0/24", "", "fd01::/64"])
    assert capability_arguments(request(), cidrs)["ipRanges"] == [
        [{"subnet": "10.1.0.0/24"}],
        [{"subnet": "fd01::/64"}],
    ]
    with pytest.raises(InvalidArgument, match="pod CIDRs"):
        check_cidrs(["10.1.0.1/24"])


def test_a_plugin_gets_its_own_part_and_the_capabilities_it_asks_for():
    plugin = {"type": "portmap", "snat": True, "capabilities": {"portMappings": True, "x": False}}
    network = parse({"cniVersion": "1.0.0", "name": "n", "plugins": [plugin]}, "")
    arguments = {"portMappings": [1], "bandwidth": {}, "x": 1}
    note = Note(ID, network, "eth0", "/run/netns/x", "", arguments, {"ips": []})
    assert derived(plugin, note) == {
        "type": "portmap",
        "snat": True,
        "cniVersion": "1.0.0",
        "name": "n",
        "runtimeConfig": {"portMappings": [1]},
        "prevResult": {"ips": []},
    }


# Results


def test_addresses_of_a_result_of_today():
    result = {
        "interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": "/x"}],
        "ips": [
            {"address": "10.9.9.1/24", "interface": 0},
            {"address": "fd00::2/64", "interface": 1},
            {"address": "10.9.9.2/24", "interface": 1},
            {"address": "10.9.9.3/24", "interface": 1},
        ],
    }
    assert addresses(result, "eth0") == ("fd00::2", "10.9.9.2")


def test_addresses_of_an_old_result():
    assert addresses({"ip4": {"ip": "10.1.2.3/24"}, "ip6": {"ip": "fd00::3/64"}}, "eth0") == (
        "10.1.2.3",
        "fd00::3",
    )


def test_addresses_without_interfaces():
    assert addresses({"ips": [{"version": "4", "address": "10.1.2.3/24"}]}, "eth0") == ("10.1.2.3",)
    assert addresses({}, "eth0") == ()


@pytest.mark.parametrize(
    "result",
    [
        {"ips": "10.0.0.1"},
        {"ips": ["10.0.0.1"]},
        {"ips": [{}]},
        {"ips": [{"address": "10.0.0.256/8"}]},
        {"ips": [{"address": "10.0.0.1/8", "interface": 3}], "interfaces": []},
        {"ips": [{"address": "10.0.0.1/8", "interface": "eth0"}], "interfaces": []},
        {"ips": [{"address": "10.0.0.1/8"}], "interfaces": 5},
        {"ip4": {"ip": "nonsense"}},
    ],
)
def test_a_malformed_result_is_told_apart(result):
    with pytest.raises(ValueError, match=r"."):
        addresses(result, "eth0")


# Notes


@pytest.fixture
def note():
    network = parse({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "p"}]}, "10.conf")
    return Note(ID, network, "eth0", "/run/netns/x", "A=1", {"aliases": ["a"]}, {"ips": []})


def test_a_note_outlives_its_writer(tmp_path, note):
    notes = Notes(tmp_path / "notes")
    notes.write(note)
    again = Notes(tmp_path / "notes")
    assert again.sandboxes() == [ID]
    assert again.read(ID) == note
    again.remove(ID)
    again.remove(ID)
    assert Notes(tmp_path / "notes").sandboxes() == []


def test_a_note_that_was_never_finished_is_none(tmp_path, note):
    notes = Notes(tmp_path)
    (tmp_path / f"{ID}.new").write_text("{")
    assert Notes(tmp_path).sandboxes() == []
    notes.write(note)
    assert notes.read(ID) == note


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"network": {}, "source": ""}', "\0"])
def test_a_damaged_note_is_told_apart_and_stays_listed(tmp_path, text):
    (tmp_path / f"{ID}.json").write_text(text)
    notes = Notes(tmp_path)
    assert notes.sandboxes() == [ID]
    with pytest.raises(ValueError, match="damaged"):
        notes.read(ID)
