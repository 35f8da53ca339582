"""Good requests arrive whole."""

import signal

import pytest

from polypod.api import decode, encode, signals
from polypod.api.v1 import api_pb2 as pb
from polypod.lifecycle.views import ContainerState, SandboxState
from polypod.plugin import requests as r
from polypod.plugin.errors import InvalidArgument


def test_decode_sandbox_keeps_every_field():
    message = pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name="p", uid="u", namespace="n", attempt=2),
        hostname="h",
        log_directory="/l",
        dns_config=pb.DNSConfig(servers=["1.1.1.1"], searches=["s"], options=["o"]),
        port_mappings=[
            pb.PortMapping(protocol=pb.UDP, container_port=1, host_port=2, host_ip="::")
        ],
        labels={"a": "b"},
        annotations={"c": "d"},
        linux=pb.LinuxPodSandboxConfig(
            cgroup_parent="/k",
            sysctls={"net.x": "1"},
            overhead=pb.LinuxContainerResources(cpu_shares=2),
            security_context=pb.LinuxSandboxSecurityContext(
                namespace_options=pb.NamespaceOption(
                    network=pb.NODE,
                    pid=pb.CONTAINER,
                    userns_options=pb.UserNamespace(
                        mode=pb.POD,
                        uids=[pb.IDMapping(host_id=9, length=1)],
                        gids=[pb.IDMapping(host_id=9, length=1)],
                    ),
                ),
                run_as_user=pb.Int64Value(value=0),
                seccomp_profile_path="localhost//p.json",
            ),
        ),
    )
    mapping = (r.IdMapping(9, 0, 1),)
    assert decode.sandbox_config(message, "config") == r.SandboxConfig(
        metadata=r.PodMetadata("p", "u", "n", 2),
        hostname="h",
        log_directory="/l",
        dns=r.DnsConfig(("1.1.1.1",), ("s",), ("o",)),
        port_mappings=(r.PortMapping(r.Protocol.UDP, 1, 2, "::"),),
        labels={"a": "b"},
        annotations={"c": "d"},
        cgroup_parent="/k",
        sysctls={"net.x": "1"},
        overhead=r.Resources(cpu_shares=2),
        security=r.SandboxSecurity(
            namespaces=r.NamespaceOptions(
                network=r.NamespaceMode.NODE,
                pid=r.NamespaceMode.CONTAINER,
                userns=r.UserNamespace(r.NamespaceMode.POD, mapping, mapping),
            ),
            run_as_user=0,
            seccomp=r.SecurityProfile(r.ProfileType.LOCALHOST, "/p.json"),
        ),
    )


@pytest.mark.parametrize("address", ["here", "1.2.3", "::1%", "1.2.3.4 ", "a" * 300])
def test_decode_port_mapping_refuses_an_address_that_is_none(address):
    mapping = pb.PortMapping(container_port=1, host_port=2, host_ip=address)
    with pytest.raises(InvalidArgument, match="host_ip"):
        decode._port_mapping(mapping, "m")


def test_decode_container_takes_bytes_in_the_environment():
    message = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name="c"),
        image=pb.ImageSpec(image="i"),
        envs=[pb.KeyValue(key="A", value=b"\xff=")],
        stop_signal=pb.SIGNAL_SIGUSR2,
    )
    config = decode.container_config(message)
    assert config.envs == (("A", b"\xff="),)
    assert config.stop_signal == signal.SIGUSR2


def test_decode_container_prefers_the_message_to_the_old_string():
    context = pb.LinuxContainerSecurityContext(
        apparmor=pb.SecurityProfile(profile_type=pb.SecurityProfile.Unconfined),
        apparmor_profile="localhost/x",
    )
    message = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name="c"),
        image=pb.ImageSpec(image="i"),
        linux=pb.LinuxContainerConfig(security_context=context),
    )
    security = decode.container_config(message).security
    assert security.apparmor == r.SecurityProfile(r.ProfileType.UNCONFINED)
    assert security.seccomp is None


@pytest.mark.parametrize("name", [n for n, v in pb.Signal.items() if v])
def test_signals_have_the_kernels_number_and_come_back(name):
    value = pb.Signal.Value(name)
    number = signals.number(value, "f")
    assert 1 <= number <= 64
    assert signals.number(signals.enum_value(number), "f") == number


def test_signals_know_the_well_known():
    assert signals.number(pb.SIGNAL_SIGTERM, "f") == 15
    assert signals.number(pb.SIGNAL_SIGKILL, "f") == 9
    assert signals.number(pb.SIGNAL_SIGRTMINPLUS3, "f") == signal.SIGRTMIN + 3
    assert signals.number(pb.SIGNAL_SIGRTMAXMINUS1, "f") == signal.SIGRTMAX - 1
    assert signals.number(0, "f") == 0
    assert signals.enum_value(0) == 0


def test_every_state_has_a_place_on_the_wire():
    assert set(encode._SANDBOX_STATES) == set(SandboxState)
    assert set(encode._CONTAINER_STATES) == set(ContainerState)
