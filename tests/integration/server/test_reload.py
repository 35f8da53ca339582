"""A running server follows its files: handlers, log level, image options; what cannot change is told."""

import asyncio
import json
import signal

import pytest

from polypod.client import CriError, pb

MAIN = """
[server]
default_handler = "sim"
watch_s = 0.05
[handlers.sim]
type = "simulator"
"""
SECOND = '[handlers.second]\ntype = "simulator"\n'


@pytest.fixture
def files(server, tmp_path):
    """Start a server on files of its own, without a word on the command line about handlers."""
    (tmp_path / "config.toml").write_text(MAIN)
    (tmp_path / "config.d").mkdir()
    server.start_with(tmp_path / "config.toml")
    return tmp_path


async def told(cri):
    return json.loads(dict((await cri.status(verbose=True)).info)["info"])


async def handlers(cri):
    return {each.name for each in (await cri.status()).runtime_handlers if each.name}


async def run(cri, name, handler):
    metadata = pb.PodSandboxMetadata(name=name, uid=name, namespace="default")
    return await cri.run_sandbox(pb.PodSandboxConfig(metadata=metadata), handler)


async def eventually(question):
    async with asyncio.timeout(20):
        while not await question():
            await asyncio.sleep(0.02)


async def test_a_handler_comes_and_goes_with_a_file(server, files, cri):
    await server.ready()
    assert await handlers(cri) == {"sim"}
    file = files / "config.d" / "second.toml"
    file.write_text(SECOND)
    await eventually(lambda: _has(cri, {"sim", "second"}))
    pod = await run(cri, "web", "second")
    assert (await cri.sandbox_status(pod)).status.runtime_handler == "second"

    file.unlink()
    await eventually(lambda: _has(cri, {"sim"}))
    with pytest.raises(CriError, match="there is no runtime handler 'second'"):
        await run(cri, "late", "second")
    # The pod lives by its backend until it is removed, then the backend is closed.
    assert (await cri.sandbox_status(pod)).status.state == pb.SANDBOX_READY
    await cri.stop_sandbox(pod)
    await cri.remove_sandbox(pod)
    server_log = server.log.read_text
    file.write_text(SECOND)
    await eventually(lambda: _has(cri, {"sim", "second"}))
    assert "handler closed name=second" in server_log()


async def _has(cri, names):
    return await handlers(cri) == names


async def test_a_changed_handler_waits_for_its_pods(server, files, cri):
    await server.ready()
    pod = await run(cri, "web", "sim")
    changed = MAIN + "[handlers.sim.options.faults]\ncreate_sandbox = 'fail'\n"
    (files / "config.toml").write_text(changed)
    await eventually(lambda: _waits(cri, {"sim"}))
    assert "1 sandbox lives by it" in (await told(cri))["reload"]["waiting"]["sim"]
    # A wrong file that comes meanwhile stays told, however often what waits is tried again.
    (files / "config.d" / "x.toml").write_text("[server]\nlog_levl = 'debug'\n")
    await eventually(lambda: _refused(cri))
    await asyncio.sleep(0.3)
    assert "did you mean" in (await told(cri))["reload"]["error"]
    assert await _waits(cri, {"sim"})
    (files / "config.d" / "x.toml").unlink()
    await eventually(lambda: _accepted(cri))
    other = await run(cri, "other", "sim")
    for each in (pod, other):
        await cri.stop_sandbox(each)
        await cri.remove_sandbox(each)
    await eventually(lambda: _waits(cri, set()))
    with pytest.raises(CriError):
        await run(cri, "refused", "sim")


async def _waits(cri, names):
    return set((await told(cri))["reload"]["waiting"]) == names


async def test_a_wrong_file_changes_nothing_and_is_told(server, files, cri):
    await server.ready()
    (files / "config.d" / "x.toml").write_text(SECOND + "[server]\nlog_levl = 'debug'\n")
    await eventually(lambda: _refused(cri))
    assert "did you mean 'server.log_level'" in (await told(cri))["reload"]["error"]
    assert await handlers(cri) == {"sim"}
    (files / "config.d" / "x.toml").write_text("[handlers.real]\ntype = 'namespaces'\n")
    await eventually(lambda: _refused(cri, "simulated handlers alone"))
    (files / "config.d" / "x.toml").unlink()
    await eventually(lambda: _accepted(cri))


@pytest.mark.needs_busybox
async def test_the_image_store_takes_its_table(server, files, cri):
    (files / "config.toml").write_text(MAIN + "image_store = 'content'\n")
    await server.ready()
    made = server.run("image", "from-host", "/bin/busybox", "--applets", "--load")
    assert made.returncode == 0, made.stderr
    assert [each.pinned for each in await cri.list_images()] == [False]
    file = files / "config.d" / "x.toml"
    file.write_text("[images]\npinned = ['a b']\n")
    await eventually(lambda: _refused(cri, "images.pinned"))
    file.write_text("[images]\npinned = ['localhost/demo:latest']\nunpackers = 1\n")
    await eventually(lambda: _needs(cri, ["images.unpackers"]))
    assert [each.pinned for each in await cri.list_images()] == [True]
    file.unlink()
    await eventually(lambda: _needs(cri, []))
    assert [each.pinned for each in await cri.list_images()] == [False]


async def _refused(cri, words=""):
    error = (await told(cri))["reload"]["error"]
    return bool(error) and words in error


async def _accepted(cri):
    return not (await told(cri))["reload"]["error"]


async def test_sighup_reads_without_a_watch(server, files, cri):
    (files / "config.toml").write_text(MAIN.replace("0.05", "0"))
    await server.ready()
    server.process.send_signal(signal.SIGHUP)  # whichever of the two it started with
    await eventually(lambda: _value(cri, "server.watch_s", "0.0"))
    (files / "config.d" / "debug.toml").write_text("[server]\nlog_level = 'debug'\n")
    server.process.send_signal(signal.SIGHUP)
    await eventually(lambda: _value(cri, "server.log_level", '"debug"'))
    origin = (await told(cri))["configuration"]["server.log_level"]["origin"]
    assert origin.endswith("config.d/debug.toml")
    assert server.process.poll() is None


async def _value(cri, key, value):
    return (await told(cri))["configuration"][key]["value"] == value


async def test_what_needs_a_restart_is_named_and_stays(server, files, cri):
    await server.ready()
    (files / "config.d" / "x.toml").write_text(
        "[server]\ncgroup_parent = '/elsewhere'\n[plugins]\nhook_timeout_s = 9\n"
    )
    await eventually(lambda: _needs(cri, ["plugins.hook_timeout_s", "server.cgroup_parent"]))
    shown = server.run("config", "show", "--running")
    assert shown.returncode == 0, shown.stderr
    assert "needs a restart: plugins.hook_timeout_s, server.cgroup_parent" in shown.stdout
    assert "/elsewhere" not in shown.stdout
    known = json.loads(server.run("config", "show", "--running", "--json").stdout)
    assert known["server.cgroup_parent"] == {"value": '"/polypod"', "origin": "default"}


async def _needs(cri, keys):
    return (await told(cri))["reload"]["needsRestart"] == keys


async def test_the_default_handler_moves(server, files, cri):
    await server.ready()
    (files / "config.d" / "x.toml").write_text(SECOND + "[server]\ndefault_handler = 'second'\n")
    await eventually(lambda: _value(cri, "server.default_handler", '"second"'))
    pod = await run(cri, "web", "")
    info = dict((await cri.sandbox_status(pod, verbose=True)).info)["info"]
    assert json.loads(info)["chosenHandler"] == "second"


async def test_down_knows_a_handler_that_the_files_have_no_more(server, files, cri):
    await server.ready()
    file = files / "config.d" / "second.toml"
    file.write_text(SECOND)
    await eventually(lambda: _has(cri, {"sim", "second"}))
    await run(cri, "web", "second")
    file.unlink()
    await eventually(lambda: _has(cri, {"sim"}))
    server.process.kill()
    server.process.wait()
    done = server.down()
    assert (done.returncode, done.stderr) == (0, "")
