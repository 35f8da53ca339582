from ipaddress import ip_address, ip_network

import pytest

from polypod.plugin.errors import FailedPrecondition, ResourceExhausted
from polypod_network.hostports import HostPort
from polypod_network.leases import Lease, Leases

TCP, UDP = 6, 17
LAN = ip_address("192.0.2.1")


@pytest.fixture
def book(tmp_path):
    leases = Leases(tmp_path / "leases", [ip_network("10.9.0.0/29"), ip_network("fd09::/64")])
    yield leases
    leases.close()


def test_take_gives_one_address_of_each_subnet_and_never_the_gateway(book):
    assert book.take("a", "pva").addresses == (ip_address("10.9.0.2"), ip_address("fd09::2"))


def test_take_gives_the_same_sandbox_its_own_again(book):
    assert book.take("a", "pva") == book.take("a", "pva")
    assert len(book.all()) == 1


def test_take_refuses_when_a_subnet_is_full_and_takes_nothing(book):
    for name in "abcde":
        book.take(name, name)
    before = book.all()
    with pytest.raises(ResourceExhausted, match=r"10\.9\.0\.0/29"):
        book.take("f", "f", [HostPort(4, TCP, None, 80, 80)])
    assert book.all() == before
    assert book.sandboxes() == list("abcde")


def test_an_address_given_back_is_the_last_to_be_used_again(book):
    first = book.take("a", "a").addresses
    book.give_back("a")
    assert book.take("b", "b").addresses != first
    for name in "cdef":
        book.take(name, name)
    assert book.held("f").addresses[0] == first[0]


def test_leases_survive_reopening(tmp_path):
    subnets = [ip_network("10.9.0.0/24")]
    one = Leases(tmp_path / "leases", subnets)
    ports = (HostPort(4, TCP, LAN, 8080, 80), HostPort(4, UDP, None, 53, 5353))
    taken = one.take("a", "a", ports)
    one.close()
    two = Leases(tmp_path / "leases", subnets)
    assert two.held("a").addresses == taken.addresses
    assert set(two.held("a").ports) == set(ports)
    assert two.take("b", "b").addresses != taken.addresses
    two.close()


def test_give_back_of_an_unknown_sandbox_is_nothing(book):
    assert book.give_back("nobody") == Lease(())


@pytest.mark.parametrize(
    ("wanted", "free"),
    [
        (HostPort(4, TCP, None, 80, 1), False),
        (HostPort(4, TCP, LAN, 80, 1), False),
        (HostPort(4, TCP, None, 81, 1), True),
        (HostPort(4, UDP, None, 80, 1), True),
        (HostPort(6, TCP, None, 80, 1), True),
        (HostPort(4, TCP, LAN, 90, 1), False),
        (HostPort(4, TCP, None, 90, 1), False),
        (HostPort(4, TCP, ip_address("192.0.2.2"), 90, 1), True),
    ],
    ids=str,
)
def test_a_host_port_belongs_to_one_sandbox(book, wanted, free):
    book.take("a", "a", [HostPort(4, TCP, None, 80, 8080), HostPort(4, TCP, LAN, 90, 9090)])
    if free:
        assert book.take("b", "b", [wanted]).ports == (wanted,)
        return
    with pytest.raises(FailedPrecondition, match="taken by sandbox a"):
        book.take("b", "b", [wanted])
    assert not book.held("b").addresses
    book.give_back("a")
    assert book.take("b", "b", [wanted]).ports == (wanted,)
