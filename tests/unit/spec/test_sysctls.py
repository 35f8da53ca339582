"""Sysctls of a pod: only what its own namespaces hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.plugin.errors import InvalidArgument
from polypod.spec.sysctls import checked_sysctls, of_namespaces


def checked(values, *, host_network=False, host_ipc=False, **rest):
    return checked_sysctls(values, host_network=host_network, host_ipc=host_ipc, **rest)


GOOD = {
    "net.ipv4.ip_unprivileged_port_start": "0",
    "net.ipv4.ip_local_port_range": "1024 65535",
    "net.ipv4.ip_local_reserved_ports": "8080,9148-9150",
    "net.ipv4.tcp_congestion_control": "bbr",
    "net.ipv6.conf.all.stable_secret": "2001:db8::1",
    "kernel.shm_rmid_forced": "1",
    "kernel.shmmax": "68719476736",
    "kernel.msgmax": "65536",
    "kernel.sem": "250 32000 32 128",
    "fs.mqueue.msg_max": "10",
}


def test_namespaced_sysctls_pass_unchanged():
    assert checked(GOOD) == GOOD
    assert checked({}) == {}


@pytest.mark.parametrize(
    ("given_name", "name"),
    [
        ("net/ipv4/ip_forward", "net.ipv4.ip_forward"),
        ("net/ipv4/conf/eth0.7/forwarding", "net.ipv4.conf.eth0/7.forwarding"),
        ("net.ipv4.conf.eth0/7.forwarding", "net.ipv4.conf.eth0/7.forwarding"),
        ("kernel/sem", "kernel.sem"),
    ],
)
def test_both_forms_of_a_name(given_name, name):
    assert checked({given_name: "1"}) == {name: "1"}


def test_one_parameter_in_two_forms_is_refused():
    with pytest.raises(InvalidArgument, match="given twice"):
        checked({"net.ipv4.ip_forward": "1", "net/ipv4/ip_forward": "0"})


@pytest.mark.parametrize(
    "name",
    [
        "kernel.core_pattern",
        "kernel.hostname",
        "kernel.modprobe",
        "kernel.shmmaxx",
        "kernel.sem.x",
        "kernel.random.uuid",
        "vm.overcommit_memory",
        "fs.mqueue",
        "fs.file-max",
        "fs.mqueuex.a",
        "netx.ipv4",
        "user.max_user_namespaces",
        "dev.cdrom.info",
        "kernel/core_pattern",
        "sunrpc.debug",
    ],
)
def test_e9_sysctls_of_no_namespace_are_refused(name):
    with pytest.raises(InvalidArgument, match="belongs to no namespace"):
        checked({name: "1"})


@pytest.mark.parametrize(
    "name",
    [
        "",
        "net",
        "net.",
        ".net.ipv4",
        "net..ipv4",
        "net.ipv4.",
        "net.../../kernel/core_pattern",
        "net/../kernel/core_pattern",
        "net.ipv4/../../kernel.core_pattern",
        "net.ipv4.ip_forward=1",
        "net.ipv4 ip_forward",
        "net.ipv4.ip_forward\n",
        "net.ipv4.\0",
        "net.ipv4.ipé",
        "-w.net",
        "net.-w",
        "/net/ipv4",
        "net." + "a" * 300,
        "net,kernel.core_pattern",
        "net+kernel.core_pattern",
    ],
)
def test_e9_malformed_names_are_refused(name):
    with pytest.raises(InvalidArgument, match="is no name of a kernel parameter"):
        checked({name: "1"})


@pytest.mark.parametrize(
    "value",
    [
        "",
        "1\n",
        "1\n2",
        "1\0",
        "1\t2",
        " 1",
        "1 ",
        "1  2",
        "1+kernel.core_pattern=|/bin/sh",
        "1;2",
        "1|2",
        "$(x)",
        "1 é",
        "1\x7f",
        "1\x1b[0m",
        "a" * 2000,
    ],
)
def test_e9_values_that_mean_more_are_refused(value):
    with pytest.raises(InvalidArgument, match="value"):
        checked({"net.ipv4.ip_forward": value})


def test_e9_cve_2022_0811():
    value = "1024+kernel.core_pattern=|/var/lib/containers/x/bin/sh #"
    with pytest.raises(InvalidArgument, match=r"kernel\.shm_rmid_forced"):
        checked({"kernel.shm_rmid_forced": value})


@pytest.mark.parametrize("name", ["net.ipv4.ip_forward", "net/core/somaxconn"])
def test_e9_network_sysctls_are_refused_in_the_hosts_network(name):
    with pytest.raises(InvalidArgument, match="host's network namespace"):
        checked({name: "1"}, host_network=True)
    assert checked({"kernel.sem": "1"}, host_network=True) == {"kernel.sem": "1"}


@pytest.mark.parametrize(
    "name", ["kernel.shmmax", "kernel.msgmnb", "kernel.sem", "fs.mqueue.queues_max"]
)
def test_e9_ipc_sysctls_are_refused_in_the_hosts_ipc(name):
    with pytest.raises(InvalidArgument, match="host's IPC namespace"):
        checked({name: "1"}, host_ipc=True)
    assert checked({"net.ipv4.ip_forward": "1"}, host_ipc=True) == {"net.ipv4.ip_forward": "1"}


def test_extra_names_are_those_that_are_configured():
    extra = frozenset({"kernel.domainname"})
    assert checked({"kernel/domainname": "x"}, extra_allowed=extra) == {"kernel.domainname": "x"}
    with pytest.raises(InvalidArgument):
        checked({"kernel.domainname2": "x"}, extra_allowed=extra)
    with pytest.raises(InvalidArgument):
        checked({"kernel.domainname": "x\n"}, extra_allowed=extra)


def test_e9_only_namespaces_that_are_made_get_theirs():
    values = {"net.core.somaxconn": "9", "kernel.shmmax": "1", "fs.mqueue.msg_max": "2"}
    assert of_namespaces(values, {"network", "uts"}) == {"net.core.somaxconn": "9"}
    assert of_namespaces(values, ["ipc"]) == {"kernel.shmmax": "1", "fs.mqueue.msg_max": "2"}
    assert of_namespaces(values, ["ipc", "network"]) == values
    assert of_namespaces(values, []) == {}


@given(st.text(max_size=30), st.text(max_size=30))
def test_e9_whatever_passes_is_one_line_below_an_allowed_tree(name, value):
    for candidate in (name, f"net.{name}", f"net/{name}", f"fs.mqueue.{name}"):
        try:
            found = checked({candidate: value})
        except InvalidArgument:
            continue
        ((passed, text),) = found.items()
        assert passed.startswith(("net.", "fs.mqueue.", "kernel."))
        assert ".." not in passed
        assert text.isprintable()
        assert text.isascii()
