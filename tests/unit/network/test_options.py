from pathlib import Path

import pytest

from polypod.plugin.errors import InvalidArgument
from polypod_network.options import parse

ROOT = Path("/var/lib/one")


def test_parse_defaults_to_both_families():
    assert {item.version for item in parse({}, ROOT).subnets} == {4, 6}


def test_parse_names_bridges_of_different_servers_differently():
    assert parse({}, ROOT).bridge != parse({}, Path("/var/lib/two")).bridge
    assert len(parse({}, ROOT).bridge) <= 15


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"subnets": ["10.0.0.1/24"]}, "subnets"),
        ({"subnets": "10.0.0.0/24"}, "subnets"),
        ({"subnets": ["10.0.0.0/24", "10.1.0.0/24"]}, "one subnet"),
        ({"subnets": ["10.0.0.0/31"]}, "too small"),
        ({"bridge": "a/b"}, "bridge"),
        ({"bridge": "x" * 16}, "bridge"),
        ({"mtu": -1}, "mtu"),
        ({"mtu": True}, "mtu"),
        ({"brigde": "x"}, "brigde"),
    ],
)
def test_parse_refuses_and_names_the_key(options, word):
    with pytest.raises(InvalidArgument, match=word):
        parse(options, ROOT)


def test_parse_leaves_other_networks_tables_alone():
    assert parse({"type": "bridge", "cni": {"conf_dir": "/etc/cni/net.d"}}, ROOT).masquerade
