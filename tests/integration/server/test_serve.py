"""serve and down, as a person or a harness uses them."""

import asyncio
import os
import signal
import socket
import stat
import threading
from pathlib import Path

import grpc
import pytest

from polypod.client import CriError

IMAGE = "localhost/demo:latest"


async def a_pod(server, cri):
    done = server.run("run", "-d", "--name", "web", IMAGE)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


async def test_it_serves_until_sigterm(server, cri):
    await server.start().ready()
    assert (await cri.version()).runtime_name == "polypod"
    path = Path(server.endpoint.removeprefix("unix://"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    code, err = server.end()
    assert code == 0
    assert "ready version=" in err
    assert not path.exists()


async def test_pods_have_addresses_logs_and_execs(server, cri):
    await server.start().ready()
    pod = await a_pod(server, cri)
    assert (await cri.sandbox_status(pod)).status.network.ip
    assert server.run("logs", "web").stdout == "hello\n"
    assert server.run("exec", "web", "--", "hostname").stdout == "web\n"
    assert "web" in server.run("ps").stdout


async def test_records_survive_a_restart_and_lists_are_never_empty_before(server, cri):
    await server.start().ready()
    pod = await a_pod(server, cri)
    server.end()
    server.start("handlers.sim.options.faults.list=delay:1")
    seen, found = set(), None
    for _ in range(1000):
        try:
            found = await cri.list_sandboxes()
            break
        except CriError as error:
            seen.add(error.code)
            await asyncio.sleep(0.01)
    assert [each.id for each in found] == [pod]
    assert seen == {grpc.StatusCode.UNAVAILABLE}


async def test_version_too_waits_for_the_recovery(server, cri, until):
    server.start("handlers.sim.options.faults.list=hang")
    await until(Path(server.endpoint.removeprefix("unix://")).is_socket)
    with pytest.raises(CriError) as refused:
        await cri.version()
    assert refused.value.code is grpc.StatusCode.UNAVAILABLE
    code, _err = server.end()
    assert code == 0


async def test_the_second_server_of_a_root_names_the_first(server, tmp_path):
    await server.start().ready()
    done = server.run("serve", "--listen", f"unix://{tmp_path}/b.sock", *server.places)
    assert done.returncode == 1
    assert f"another server (pid {server.process.pid})" in done.stderr


async def test_the_second_signal_leaves_at_once(server, cri, until):
    await server.start("handlers.sim.options.faults.create_sandbox=hang").ready()
    # A call that hangs keeps the server from leaving for a while: the second signal does not wait.
    call = threading.Thread(target=server.run, args=("run", "-d", IMAGE))
    call.start()
    root = Path(f"{server.place}/state/sandboxes")
    await until(lambda: root.is_dir() and any(root.iterdir()))
    server.process.send_signal(signal.SIGTERM)
    await until(lambda: server.process.poll() is not None or _leaving(server))
    server.process.send_signal(signal.SIGTERM)
    await until(lambda: server.process.poll() is not None)
    call.join()
    assert server.process.returncode in {0, 128 + signal.SIGTERM}


def _leaving(server):
    """It has closed its socket to new calls."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(server.endpoint.removeprefix("unix://"))
        except OSError:
            return True
    return False


@pytest.mark.parametrize(
    ("settings", "endpoint", "words"),
    [
        (["server.rot=/x"], "", "did you mean 'server.root'"),
        (["server.default_handler=nobody"], "", "configured are ['sim']"),
        ([], "tcp://0.0.0.0:1", "give unix:///absolute/path"),
        (["server.log_level=loud"], "", "give one of debug"),
        (["server.cgroup_parent=relative"], "", "absolute"),
        (["plugins.required=['nobody']"], "", "required plugin 'nobody' is not installed"),
    ],
    ids=["key", "default", "listen", "level", "parent", "required"],
)
def test_what_is_wrong_is_said_in_one_line(server, settings, endpoint, words):
    server.endpoint = endpoint or server.endpoint
    code, err = server.start(*settings).ended()
    assert code == 1
    assert words in err
    assert "Traceback" not in err


@pytest.mark.parametrize("alive", [True, False], ids=["daemon alive", "daemon killed"])
async def test_down_leaves_nothing(server, cri, alive):
    await server.start().ready()
    pod = await a_pod(server, cri)
    if not alive:
        server.process.kill()
        server.process.wait()
    done = server.down()
    assert (done.returncode, done.stderr) == (0, "")
    server.ended()
    assert os.listdir(f"{server.place}/state") == []
    assert not Path(server.endpoint.removeprefix("unix://")).exists()
    await server.start().ready()
    assert await cri.list_sandboxes() == []
    assert [image.repo_tags[0] for image in await cri.list_images()] == [IMAGE]
    assert pod


def test_down_where_nothing_ever_ran_is_fine(server):
    done = server.down()
    assert (done.returncode, done.stderr) == (0, "")
    assert not Path(f"{server.place}/root").exists()


async def test_an_unusable_handler_is_named_in_the_refusal(server, cri):
    await server.start("handlers.odd={type='simulator', options={odd=1}}").ready()
    from polypod.client import pb

    config = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="n", namespace="ns", uid="u"))
    with pytest.raises(CriError) as refused:
        await cri.run_sandbox(config, "odd")
    assert refused.value.code is grpc.StatusCode.NOT_FOUND
    assert "option 'odd' is unknown" in refused.value.text


async def test_what_a_dead_daemon_had_unpacked_is_removed(server, cri):
    left = server.place / "state" / "restores" / "half" / "backend"
    left.mkdir(parents=True)
    (left / "file").write_text("x")
    await server.start().ready()
    assert not left.parent.parent.exists()
