from ipaddress import ip_address, ip_network

import pytest

from polypod.plugin.errors import ResourceExhausted
from polypod_network.leases import Leases


@pytest.fixture
def book(tmp_path):
    leases = Leases(tmp_path / "leases", [ip_network("10.9.0.0/29"), ip_network("fd09::/64")])
    yield leases
    leases.close()


def test_take_gives_one_address_of_each_subnet_and_never_the_gateway(book):
    assert book.take("a", "pva") == (ip_address("10.9.0.2"), ip_address("fd09::2"))


def test_take_gives_the_same_sandbox_its_own_again(book):
    assert book.take("a", "pva") == book.take("a", "pva")
    assert len(book.addresses()) == 2


def test_take_refuses_when_a_subnet_is_full_and_takes_nothing(book):
    for name in "abcde":
        book.take(name, name)
    before = book.addresses()
    with pytest.raises(ResourceExhausted, match=r"10\.9\.0\.0/29"):
        book.take("f", "f")
    assert book.addresses() == before
    assert book.sandboxes() == list("abcde")


def test_an_address_given_back_is_the_last_to_be_used_again(book):
    first = book.take("a", "a")
    book.give_back("a")
    assert book.take("b", "b") != first
    for name in "cdef":
        book.take(name, name)
    assert book.held("f")[0] == first[0]


def test_leases_survive_reopening(tmp_path):
    subnets = [ip_network("10.9.0.0/24")]
    one = Leases(tmp_path / "leases", subnets)
    taken = one.take("a", "a")
    one.close()
    two = Leases(tmp_path / "leases", subnets)
    assert two.held("a") == taken
    assert two.take("b", "b") != taken
    two.close()


def test_give_back_of_an_unknown_sandbox_is_nothing(book):
    assert book.give_back("nobody") == ()
