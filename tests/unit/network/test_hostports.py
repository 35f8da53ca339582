"""Port mappings of a request, per family."""

from ipaddress import ip_address

import pytest

from polypod.plugin.errors import InvalidArgument
from polypod.plugin.requests import PortMapping, Protocol
from polypod_network.hostports import HostPort, host_ports

BOTH = (4, 6)
TCP, SCTP = 6, 132


def ports(*mappings, versions=BOTH):
    return host_ports(mappings, versions, "sandbox a")


def test_a_mapping_without_address_is_for_every_family():
    assert ports(PortMapping(Protocol.TCP, 80, 8080)) == (
        HostPort(4, TCP, None, 8080, 80),
        HostPort(6, TCP, None, 8080, 80),
    )
    assert ports(PortMapping(Protocol.SCTP, 80, 8080), versions=[6]) == (
        HostPort(6, SCTP, None, 8080, 80),
    )


def test_no_host_port_asks_for_nothing():
    assert ports(PortMapping(Protocol.TCP, 80)) == ()


@pytest.mark.parametrize(
    ("text", "version", "address"),
    [
        ("192.0.2.1", 4, ip_address("192.0.2.1")),
        ("2001:db8::1", 6, ip_address("2001:db8::1")),
        ("0.0.0.0", 4, None),
        ("::", 6, None),
    ],
)
def test_an_address_chooses_its_family(text, version, address):
    (found,) = ports(PortMapping(Protocol.TCP, 80, 8080, text))
    assert (found.version, found.address) == (version, address)


def test_the_same_mapping_twice_is_one():
    twice = [PortMapping(Protocol.TCP, 80, 8080)] * 2
    assert len(ports(*twice, versions=[4])) == 1


@pytest.mark.parametrize(
    ("mappings", "words"),
    [
        ([PortMapping(Protocol.TCP, 80, 8080, "lan")], "no IP address"),
        ([PortMapping(Protocol.TCP, 80, 8080, "fe80::1%eth0")], "zone"),
        ([PortMapping(Protocol.TCP, 80, 8080, "::1")], "no IPv6 address"),
        (
            [
                PortMapping(Protocol.TCP, 80, 8080),
                PortMapping(Protocol.TCP, 81, 8080, "192.0.2.1"),
            ],
            "host port 8080/TCP of 192.0.2.1",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_words(mappings, words):
    with pytest.raises(InvalidArgument, match=words):
        ports(*mappings, versions=[4])
