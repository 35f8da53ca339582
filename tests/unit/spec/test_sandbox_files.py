"""Files of a sandbox: what stands in them, and that nothing else can get in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.plugin.errors import InvalidArgument
from polypod.plugin.requests import (
    DnsConfig,
    NamespaceMode,
    NamespaceOptions,
    PodMetadata,
    SandboxConfig,
    SandboxSecurity,
)
from polypod.spec.sandbox_files import sandbox_files, sandbox_hostname

NODE = {
    "node_hostname": "node-1",
    "node_resolv_conf": "nameserver 192.0.2.53\n# the node's\n",
    "node_hosts": "127.0.0.1 localhost\n192.0.2.1 node-1\n",
}


def config(*, hostname="web-0", dns=None, network=NamespaceMode.POD):
    security = SandboxSecurity(namespaces=NamespaceOptions(network=network))
    return SandboxConfig(PodMetadata("p", "u", "n"), hostname, dns=dns, security=security)


def test_pod_network():
    files = sandbox_files(
        config(dns=DnsConfig(("10.96.0.10", "fd00::a"), ("ns.svc", "svc"), ("ndots:5", "edns0"))),
        **NODE,
        addresses=("10.1.2.3", "fd00::3"),
    )
    assert set(files) == {"hostname", "hosts", "resolv.conf"}
    assert files["hostname"] == "web-0\n"
    assert files["resolv.conf"] == (
        "search ns.svc svc\nnameserver 10.96.0.10\nnameserver fd00::a\noptions ndots:5 edns0\n"
    )
    lines = files["hosts"].splitlines()
    assert lines[0].split() == ["127.0.0.1", "localhost"]
    assert lines[-2:] == ["10.1.2.3\tweb-0", "fd00::3\tweb-0"]
    assert "192.0.2.1" not in files["hosts"]


def test_full_name_gives_the_short_one_too():
    files = sandbox_files(config(hostname="web-0.ns.example"), **NODE, addresses=("10.1.2.3",))
    assert files["hosts"].splitlines()[-1] == "10.1.2.3\tweb-0.ns.example web-0"


def test_host_network_keeps_the_nodes_name_and_hosts():
    files = sandbox_files(config(network=NamespaceMode.NODE), **NODE)
    assert files["hostname"] == "node-1\n"
    assert files["hosts"] == NODE["node_hosts"]
    assert files["resolv.conf"] == NODE["node_resolv_conf"]


@pytest.mark.parametrize("dns", [None, DnsConfig()])
def test_empty_dns_config_copies_the_nodes(dns):
    assert sandbox_files(config(dns=dns), **NODE)["resolv.conf"] == NODE["node_resolv_conf"]


@pytest.mark.parametrize(
    ("dns", "text"),
    [
        (DnsConfig(servers=("192.0.2.1",)), "nameserver 192.0.2.1\n"),
        (DnsConfig(searches=(".",)), "search .\n"),
        (DnsConfig(options=("timeout:1",)), "options timeout:1\n"),
        (DnsConfig(servers=("fe80::1%eth0.7",)), "nameserver fe80::1%eth0.7\n"),
    ],
)
def test_dns_config_in_part(dns, text):
    assert sandbox_files(config(dns=dns), **NODE)["resolv.conf"] == text


def test_no_hostname_is_the_nodes():
    assert sandbox_hostname(config(hostname=""), "node-1") == "node-1"


@pytest.mark.parametrize(
    "hostname",
    ["a\nb", "a b", "a\0", "-a", "a-", ".a", "a:b", "ü", "a" * 65, "a/b", "#", " ", "a\n"],
)
@pytest.mark.parametrize("network", [NamespaceMode.POD, NamespaceMode.NODE])
def test_e18_hostname_is_one_word(hostname, network):
    with pytest.raises(InvalidArgument, match="hostname"):
        sandbox_files(config(hostname=hostname, network=network), **NODE)


EVIL = ["x\nnameserver 6.6.6.6", "x y", "x\0", "x\t", "#", "", "x\r", "x;y", "é", "x\x0b"]


@pytest.mark.parametrize(
    "text", [*EVIL, "dns.example", "1.2.3", "1.2.3.4/8", "::1%", "::1%a b", "::1%\n"]
)
def test_e18_servers_are_addresses(text):
    with pytest.raises(InvalidArgument, match=r"dns_config\.servers"):
        sandbox_files(config(dns=DnsConfig(servers=("192.0.2.1", text))), **NODE)


@pytest.mark.parametrize("text", [*EVIL, "a:b", "-x"])
def test_e18_searches_are_names(text):
    with pytest.raises(InvalidArgument, match=r"dns_config\.searches"):
        sandbox_files(config(dns=DnsConfig(searches=("ok", text))), **NODE)


@pytest.mark.parametrize("text", [*EVIL, "a:b:c", ":", "a:"])
def test_e18_options_are_words(text):
    with pytest.raises(InvalidArgument, match=r"dns_config\.options"):
        sandbox_files(config(dns=DnsConfig(options=("ok", text))), **NODE)


@pytest.mark.parametrize("field", ["servers", "searches", "options"])
def test_e8_lists_are_bounded(field):
    dns = DnsConfig(**{field: ("1.1.1.1",) * 65})
    with pytest.raises(InvalidArgument, match="more than 64"):
        sandbox_files(config(dns=dns), **NODE)


@given(st.lists(st.text(max_size=12), max_size=2), st.text(max_size=12))
def test_e18_no_text_adds_a_line(words, hostname):
    for field in ("servers", "searches", "options"):
        try:
            files = sandbox_files(
                config(hostname=hostname, dns=DnsConfig(**{field: tuple(words)})), **NODE
            )
        except InvalidArgument:
            continue
        assert files["hostname"].count("\n") == 1
        if words:
            lines = files["resolv.conf"].splitlines()
            assert len(lines) == (len(words) if field == "servers" else 1)
            assert [word for line in lines for word in line.split()[1:]] == words
