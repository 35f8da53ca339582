"""The wire end to end: client, socket, interceptor, services, with a fake heart behind."""

import errno
import importlib.util
import json
import stat
import sys
from pathlib import Path

import grpc
import pytest

from polypod.api.interceptors import code_and_text
from polypod.api.server import ApiServer, prepare_socket, socket_path
from polypod.api.v1 import api_pb2 as pb
from polypod.client import CriClient, CriError
from polypod.lifecycle.views import StreamChoice
from polypod.plugin import errors

_spec = importlib.util.spec_from_file_location(
    "polypod_test_fake_heart", Path(__file__).with_name("fake_heart.py")
)
fake = sys.modules.setdefault(_spec.name, importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(fake)


@pytest.fixture
async def wire(tmp_path):
    heart = fake.FakeHeart()
    server = ApiServer(heart, f"unix://{tmp_path}/s/polypod.sock")
    await server.start()
    async with CriClient(str(server.path), timeout_s=10) as cri:
        yield heart, cri, server
    await server.stop(0.1)
    assert not server.path.exists()


async def test_socket_is_the_owners_alone(wire):
    _, _, server = wire
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(server.path.parent.stat().st_mode) == 0o700


async def test_second_server_on_the_same_socket_is_refused(wire):
    heart, cri, server = wire
    with pytest.raises(errors.FailedPrecondition, match="another server answers"):
        await ApiServer(heart, f"unix://{server.path}").start()
    assert (await cri.version()).runtime_name == "polypod"


def test_stale_socket_is_removed_and_other_files_stay(tmp_path):
    import socket

    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    prepare_socket(path)
    assert not path.exists()
    path.write_text("mine")
    with pytest.raises(errors.FailedPrecondition, match="no socket"):
        prepare_socket(path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("listen", ["/x", "tcp://1", "unix://x", "unix:///" + "x" * 120])
def test_socket_path_refuses(listen):
    with pytest.raises(errors.InvalidArgument, match=r"server\.listen"):
        socket_path(listen)


async def test_version_has_four_strings(wire):
    answer = await wire[1].version()
    assert (answer.version, answer.runtime_api_version) == ("0.1.0", "v1")
    assert answer.runtime_version.count(".") == 2


async def test_status_names_the_default_handler_twice_and_hides_unusable_ones(wire):
    answer = await wire[1].status(verbose=True)
    assert [h.name for h in answer.runtime_handlers] == ["", "n"]
    assert all(h.features.user_namespaces for h in answer.runtime_handlers)
    assert answer.info == {"info": '{"x": 1}'}
    assert not (await wire[1].status()).info


async def test_sandbox_status_tells_what_was_stored(wire):
    answer = await wire[1].sandbox_status("aaa", verbose=True)
    status = answer.status
    assert status.linux.namespaces.options.network == pb.NODE
    assert not status.HasField("network")
    assert dict(status.annotations) == {"a": "\u2028 x"}
    assert status.metadata.attempt == 3
    assert status.created_at == 5


async def test_container_status_tells_all(wire):
    status = (await wire[1].container_status("b")).status
    assert status.log_path == "/logs/c.log"
    assert status.stop_signal == pb.SIGNAL_SIGUSR1
    assert (status.user.linux.uid, status.user.linux.gid) == (1000, 1001)
    assert status.mounts[0].propagation == pb.PROPAGATION_BIDIRECTIONAL
    assert status.resources.linux.cpu_shares == 7
    assert (status.reason, status.exit_code) == ("OOMKilled", 137)
    assert (status.image_id, status.image.user_specified_image) == ("sha256:1", "wanted")


async def test_unknown_counters_are_absent(wire):
    stats = await wire[1].container_stats("b")
    assert not stats.HasField("cpu")
    assert not stats.HasField("memory")
    assert not stats.HasField("writable_layer")


async def test_a_pull_tells_how_far_it_is_to_verbose_status_alone(wire):
    cri = wire[1]
    answer = await cri.image_status("coming:1", verbose=True)
    assert not answer.HasField("image")
    (step,) = json.loads(answer.info["info"])["pull"]
    assert (step["what"], step["done_bytes"], step["total_bytes"]) == ("layer", 1, 2)
    assert not (await cri.image_status("coming:1")).info


async def test_images(wire):
    heart, cri, _ = wire
    assert not (await cri.image_status("absent")).HasField("image")
    image = (await cri.image_status("t:1", verbose=True)).image
    assert (image.uid.value, image.username, image.size) == (65, "", 10)
    assert await cri.pull_image("t:1", pb.AuthConfig(password="secret")) == image.id
    assert "secret" not in repr(heart.calls)
    await cri.list_images("t:1")
    assert heart.calls[-1] == ("list_images", "t:1")
    usage = await cri.image_filesystem()
    assert usage.image_filesystems[0].fs_id.mountpoint == "/"
    assert len(usage.container_filesystems) == 1


async def test_runtime_config_is_cgroupfs_and_cidrs_arrive(wire):
    heart, cri, _ = wire
    answer = await cri.call(cri.runtime, "RuntimeConfig", pb.RuntimeConfigRequest())
    assert answer.linux.cgroup_driver == pb.CGROUPFS
    request = pb.UpdateRuntimeConfigRequest(
        runtime_config=pb.RuntimeConfig(
            network_config=pb.NetworkConfig(pod_cidr="10.0.0.0/8, fd00::/8")
        )
    )
    await cri.call(cri.runtime, "UpdateRuntimeConfig", request)
    assert heart.calls[-1] == ("update_runtime_config", ("10.0.0.0/8", "fd00::/8"))


async def test_streams_are_urls(wire):
    heart, cri, _ = wire
    url = await cri.exec_url("b", ["prog", "-x"], stdin=True, stdout=True, tty=True)
    assert url == "http://127.0.0.1:1/exec/t"
    choice = StreamChoice(stdin=True, stdout=True, tty=True)
    assert heart.calls[-1] == ("exec_url", "b", ("prog", "-x"), choice)
    assert (await cri.attach_url("b", stderr=True)).endswith("/attach/t")
    assert heart.calls[-1] == ("attach_url", "b", StreamChoice(stderr=True))
    assert (await cri.forward_url("a", [80, 443])).endswith("/portforward/t")
    assert heart.calls[-1] == ("forward_url", "a", (80, 443))


async def test_negative_stop_timeout_means_now(wire):
    heart, cri, _ = wire
    await cri.stop_container("b", -3)
    assert heart.calls[-1] == ("stop_container", "b", 0.0)


ERRORS = [
    (errors.InvalidArgument("w"), "INVALID_ARGUMENT"),
    (errors.NotFound("w"), "NOT_FOUND"),
    (errors.AlreadyExists("w"), "ALREADY_EXISTS"),
    (errors.FailedPrecondition("w"), "FAILED_PRECONDITION"),
    (errors.Unsupported("w"), "FAILED_PRECONDITION"),
    (errors.ResourceExhausted("w"), "RESOURCE_EXHAUSTED"),
    (errors.Unavailable("w"), "UNAVAILABLE"),
    (errors.Unimplemented("w"), "UNIMPLEMENTED"),
    (errors.DeadlineExceeded("w"), "DEADLINE_EXCEEDED"),
    (errors.BackendError("w"), "UNKNOWN"),
    (OSError(errno.EMFILE, "w"), "RESOURCE_EXHAUSTED"),
    (OSError(errno.EIO, "w"), "UNKNOWN"),
]


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda x: repr(x)[:30])
async def test_errors_become_codes(wire, error, code):
    heart, cri, _ = wire
    heart.error = error
    with pytest.raises(CriError) as caught:
        await cri.start_container("b")
    assert caught.value.code.name == code
    assert "w" in caught.value.text
    assert "Traceback" not in caught.value.text


async def test_internal_error_tells_nothing_of_itself(wire):
    heart, cri, _ = wire
    heart.error = KeyError("secret path")
    with pytest.raises(CriError) as caught:
        await cri.start_container("b")
    assert caught.value.code is grpc.StatusCode.INTERNAL
    assert "secret" not in caught.value.text


async def test_long_error_text_arrives(wire):
    heart, cri, _ = wire
    heart.error = errors.BackendError("x" * 100_000)
    with pytest.raises(CriError) as caught:
        await cri.start_container("b")
    assert caught.value.code is grpc.StatusCode.UNKNOWN


def test_every_error_has_a_code():
    for kind in errors.PolypodError.__subclasses__():
        assert code_and_text(kind("x"))[0] is not grpc.StatusCode.INTERNAL


META = pb.PodSandboxMetadata(name="p", namespace="n", uid="u")
CMETA = pb.ContainerMetadata(name="c")
IMG = pb.ImageSpec(image="i")


def sandbox(**more):
    return pb.RunPodSandboxRequest(config=pb.PodSandboxConfig(metadata=META, **more))


def security(**more):
    context = pb.LinuxSandboxSecurityContext(**more)
    return sandbox(linux=pb.LinuxPodSandboxConfig(security_context=context))


def container(**more):
    config = pb.ContainerConfig(metadata=CMETA, image=IMG, **more)
    return pb.CreateContainerRequest(pod_sandbox_id="a", config=config)


def confined(**more):
    context = pb.LinuxContainerSecurityContext(**more)
    return container(linux=pb.LinuxContainerConfig(security_context=context))


def number(value):
    return pb.Int64Value(value=value)


BAD = [
    ("RunPodSandbox", pb.RunPodSandboxRequest(), "config is missing"),
    ("RunPodSandbox", pb.RunPodSandboxRequest(config=pb.PodSandboxConfig()), "config.metadata"),
    (
        "RunPodSandbox",
        pb.RunPodSandboxRequest(
            config=pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(uid="u"))
        ),
        "config.metadata.name",
    ),
    ("RunPodSandbox", sandbox(log_directory="rel"), "config.log_directory"),
    ("RunPodSandbox", sandbox(hostname="a\0b"), "config.hostname"),
    ("RunPodSandbox", sandbox(port_mappings=[pb.PortMapping(protocol=9)]), "protocol"),
    ("RunPodSandbox", sandbox(port_mappings=[pb.PortMapping(host_port=70000)]), "host_port"),
    ("RunPodSandbox", sandbox(labels={"a": "x\0"}), "config.labels"),
    ("RunPodSandbox", sandbox(annotations={"a": "x" * (1 << 21)}), "config.annotations"),
    ("RunPodSandbox", security(namespace_options=pb.NamespaceOption(network=77)), "network"),
    ("RunPodSandbox", security(namespace_options=pb.NamespaceOption(network=1)), "network"),
    ("RunPodSandbox", security(namespace_options=pb.NamespaceOption(pid=3)), "target_id"),
    ("RunPodSandbox", security(run_as_group=number(1)), "run_as_group"),
    ("RunPodSandbox", security(run_as_user=number(-1)), "run_as_user"),
    ("RunPodSandbox", security(supplemental_groups=[1 << 33]), "supplemental_groups"),
    ("RunPodSandbox", security(seccomp=pb.SecurityProfile(profile_type=2)), "localhost_ref"),
    ("RunPodSandbox", security(seccomp_profile_path="weird"), "seccomp"),
    (
        "RunPodSandbox",
        security(namespace_options=pb.NamespaceOption(userns_options=pb.UserNamespace(mode=0))),
        "userns_options",
    ),
    ("StopPodSandbox", pb.StopPodSandboxRequest(), "pod_sandbox_id"),
    ("RemovePodSandbox", pb.RemovePodSandboxRequest(), "pod_sandbox_id"),
    ("PodSandboxStatus", pb.PodSandboxStatusRequest(), "pod_sandbox_id"),
    ("PodSandboxStatus", pb.PodSandboxStatusRequest(pod_sandbox_id="x" * 300), "pod_sandbox_id"),
    (
        "ListPodSandbox",
        pb.ListPodSandboxRequest(
            filter=pb.PodSandboxFilter(state=pb.PodSandboxStateValue(state=9))
        ),
        "filter.state",
    ),
    ("CreateContainer", pb.CreateContainerRequest(), "pod_sandbox_id"),
    ("CreateContainer", pb.CreateContainerRequest(pod_sandbox_id="a"), "config is missing"),
    (
        "CreateContainer",
        pb.CreateContainerRequest(pod_sandbox_id="a", config=pb.ContainerConfig(metadata=CMETA)),
        "config.image",
    ),
    ("CreateContainer", container(stop_signal=99), "stop_signal"),
    ("CreateContainer", container(stdin_once=True), "stdin_once"),
    ("CreateContainer", container(envs=[pb.KeyValue(key="a=b")]), "envs[0]"),
    ("CreateContainer", container(envs=[pb.KeyValue(key="a", value=b"\0")]), "envs[0]"),
    ("CreateContainer", container(mounts=[pb.Mount(host_path="/x")]), "mounts[0].container_path"),
    ("CreateContainer", container(mounts=[pb.Mount(container_path="/x")]), "mounts[0].host_path"),
    (
        "CreateContainer",
        container(mounts=[pb.Mount(container_path="/x", host_path="/y", propagation=8)]),
        "propagation",
    ),
    (
        "CreateContainer",
        container(mounts=[pb.Mount(container_path="/x", host_path="/y", recursive_read_only=True)]),
        "recursive_read_only",
    ),
    ("CreateContainer", container(devices=[pb.Device()]), "devices[0].host_path"),
    (
        "CreateContainer",
        container(devices=[pb.Device(host_path="/dev/null", permissions="x")]),
        "permissions",
    ),
    ("CreateContainer", container(CDI_devices=[pb.CDIDevice()]), "CDI_devices[0]"),
    ("CreateContainer", confined(run_as_group=number(1)), "run_as_group"),
    ("CreateContainer", confined(run_as_user=number(1), run_as_username="x"), "exclude"),
    ("CreateContainer", confined(supplemental_groups_policy=5), "supplemental_groups_policy"),
    ("CreateContainer", confined(apparmor_profile="x"), "apparmor"),
    ("StartContainer", pb.StartContainerRequest(), "container_id"),
    ("StopContainer", pb.StopContainerRequest(), "container_id"),
    ("RemoveContainer", pb.RemoveContainerRequest(), "container_id"),
    ("ContainerStatus", pb.ContainerStatusRequest(), "container_id"),
    (
        "ListContainers",
        pb.ListContainersRequest(filter=pb.ContainerFilter(state=pb.ContainerStateValue(state=9))),
        "filter.state",
    ),
    ("ReopenContainerLog", pb.ReopenContainerLogRequest(), "container_id"),
    ("ExecSync", pb.ExecSyncRequest(container_id="b"), "cmd"),
    ("ExecSync", pb.ExecSyncRequest(container_id="b", cmd=["a"], timeout=-1), "timeout"),
    ("Exec", pb.ExecRequest(cmd=["a"], stdout=True), "container_id"),
    ("Exec", pb.ExecRequest(container_id="b", stdout=True), "cmd"),
    ("Attach", pb.AttachRequest(stdout=True), "container_id"),
    ("PortForward", pb.PortForwardRequest(), "pod_sandbox_id"),
    ("PortForward", pb.PortForwardRequest(pod_sandbox_id="a", port=[80, 0]), "port[1]"),
    ("PortForward", pb.PortForwardRequest(pod_sandbox_id="a", port=[65536]), "port[0]"),
    ("PortForward", pb.PortForwardRequest(pod_sandbox_id="a", port=[80] * 128), "port"),
    ("ContainerStats", pb.ContainerStatsRequest(), "container_id"),
    ("ImageStatus", pb.ImageStatusRequest(), "image"),
    ("PullImage", pb.PullImageRequest(image=pb.ImageSpec()), "image.image"),
    ("RemoveImage", pb.RemoveImageRequest(), "image"),
]


@pytest.mark.parametrize(
    ("name", "request_", "field"), BAD, ids=[f"{i}-{b[0]}-{b[2]}" for i, b in enumerate(BAD)]
)
async def test_bad_input_is_refused_with_the_field(wire, name, request_, field):
    heart, cri, _ = wire
    stub = cri.images if "Image" in name else cri.runtime
    with pytest.raises(CriError) as caught:
        await cri.call(stub, name, request_)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert field in caught.value.text
    assert heart.calls == []
