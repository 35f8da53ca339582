"""Our packed messages against pyroute2's own: what it decodes is what we meant."""

from ipaddress import ip_interface

import pytest

from polypod_network import links, wire


@pytest.fixture(scope="module")
def rtnl():
    return pytest.importorskip("pyroute2.netlink.rtnl")


def _decode(kind, request):
    decoded = kind(wire.message(request.kind, request.flags, 1, request.payload))
    decoded.decode()
    return decoded


def test_veth_is_what_pyroute2_reads(rtnl):
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    request = links.veth("pv0", bridge_index=7, namespace_fd=9, mtu=1400, what="a test")
    message = _decode(ifinfmsg, request)
    assert message.get("ifname") == "pv0"
    assert message.get("master") == 7
    assert message.get("mtu") == 1400
    peer = message.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA").get_attr("VETH_INFO_PEER")
    assert peer.get("ifname") == "eth0"
    assert peer["index"] == links.POD_INDEX
    assert peer.get("net_ns_fd") == 9


@pytest.mark.parametrize("text", ["10.1.2.3/24", "fd00::5/64"])
def test_address_is_what_pyroute2_reads(rtnl, text):
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

    message = _decode(ifaddrmsg, links.address(2, ip_interface(text)))
    assert f"{message.get('address')}/{message['prefixlen']}" == text
    assert message["index"] == 2


@pytest.mark.parametrize("text", ["10.1.2.1/24", "fd00::1/64"])
def test_default_route_is_what_pyroute2_reads(rtnl, text):
    from pyroute2.netlink.rtnl.rtmsg import rtmsg

    message = _decode(rtmsg, links.default_route(2, ip_interface(text)))
    assert message.get("gateway") == text.split("/")[0]
    assert message.get("oif") == 2
    assert message["dst_len"] == 0


def test_attributes_reads_back_what_was_packed():
    packed = wire.text(3, "abc") + wire.u32(4, 1500)
    assert wire.attributes(packed) == {3: b"abc\0", 4: (1500).to_bytes(4, "little")}
    assert wire.attributes(b"\x02\x00\x01\x00") == {}
