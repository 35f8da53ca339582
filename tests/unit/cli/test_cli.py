"""The command line against a server with a fake heart."""

import asyncio
import importlib.util
import json
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from polypod.api.server import ApiServer
from polypod.cli import completion, logfile, main
from polypod.cli.command import Usage
from polypod.cli.images import archive_reference
from polypod.cli.main import build_parser, commands
from polypod.cli.pods import size
from polypod.cli.running import byte_count

_spec = importlib.util.spec_from_file_location(
    "polypod_test_fake_heart", Path(__file__).parents[1] / "api" / "fake_heart.py"
)
fake = sys.modules.setdefault(_spec.name, importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(fake)


@pytest.fixture
def served(tmp_path):
    """A server in a thread of its own: commands run their own event loop."""
    heart, ready, loop = fake.FakeHeart(), threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()
    server = ApiServer(heart, f"unix://{tmp_path}/s.sock")

    async def serve():
        await server.start()
        ready.set()
        await stop.wait()
        await server.stop(0)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(10)
    yield heart, ["--endpoint", str(server.path)]
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()


def test_ps_prints_pods_with_their_containers(served, capsys):
    assert main([*served[1], "ps"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["ID", "NAME", "STATE"]
    assert "ns/pod" in lines[1]
    assert "exited" in lines[2]
    assert "\x1b" not in "".join(lines)


def test_ps_json(served, capsys):
    assert main([*served[1], "ps", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pods"][0]["metadata"]["name"] == "pod"


def test_exec_answers_the_programs_code(served, capfd):
    assert main([*served[1], "exec", "--timeout", "4", "c", "prog", "-x"]) == 3
    assert capfd.readouterr() == ("out", "err")
    assert served[0].calls[-1] == ("exec_sync", "b" * 64, ("prog", "-x"), 4.0)


def test_stop_and_rm_take_names_and_prefixes(served):
    assert main([*served[1], "stop", "-t", "2", "bbb"]) == 0
    assert served[0].calls[-1] == ("stop_container", "b" * 64, 2.0)
    assert main([*served[1], "rm", "pod"]) == 0
    assert served[0].calls[-1] == ("remove_sandbox", "a" * 64)


def test_unknown_name_is_usage(served, capsys):
    assert main([*served[1], "stop", "zzz"]) == 2
    assert "polypod ps" in capsys.readouterr().err


def test_explain(served, capsys):
    assert main([*served[1], "explain", "pod"]) == 0
    assert "k: 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["images"],
        ["images", "--json"],
        ["stats"],
        ["pull", "t:1"],
        ["image", "rm", "t:1"],
        ["image", "inspect", "t:1"],
    ],
    ids=" ".join,
)
def test_image_commands_and_stats_succeed(served, words):
    assert main([*served[1], *words]) == 0


def test_run_makes_a_pod_and_removes_it(served, capfd):
    words = ["run", "--rm", "--name", "n", "--env", "A=b", "-m", "64m", "t:1", "prog", "-v"]
    assert main([*served[1], *words]) == 137
    kinds = [call[0] for call in served[0].calls]
    assert kinds[-2:] == ["stop_sandbox", "remove_sandbox"]
    config = next(call[2] for call in served[0].calls if call[0] == "create_container")
    assert config.command == ("prog", "-v")
    assert config.envs == (("A", b"b"),)
    assert config.resources.memory_limit_in_bytes == 64 << 20
    sandbox = next(call[1] for call in served[0].calls if call[0] == "run_sandbox")
    assert not Path(sandbox.log_directory).exists()


def test_no_server_is_said_plainly(tmp_path, capsys):
    assert main(["-e", f"{tmp_path}/none.sock", "ps"]) == 1
    assert "polypod serve" in capsys.readouterr().err


def test_config_default_and_check(tmp_path, capsys):
    assert main(["config", "default"]) == 0
    file = tmp_path / "c.toml"
    file.write_text(capsys.readouterr().out)
    assert main(["config", "check", str(file)]) == 0
    file.write_text("[server]\nrot = '/x'\n")
    assert main(["config", "check", str(file)]) == 1
    assert "root" in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_names_every_command(shell, capsys):
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(command.name in text for command in commands())


def test_completion_completes_in_bash():
    program = completion.script(build_parser()) + (
        'COMP_WORDS=(polypod config sh); COMP_CWORD=2; _polypod; echo "${COMPREPLY[@]}"\n'
        'COMP_WORDS=(polypod ps --j); COMP_CWORD=2; _polypod; echo "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(["bash"], input=program, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["show", "--json"]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (b"T stdout F hello", b"hello\n"),
        (b"T stderr P part", b"part"),
        (b"T stdout F ", b"\n"),
        (b"T stdout F", b"\n"),
        (b"not a log line", b"not a log line\n"),
    ],
)
def test_split_line(line, wanted):
    assert logfile.split_line(line)[2] == wanted


async def test_copy_log_prints_the_tail_then_follows(tmp_path, capfd):
    log = tmp_path / "c.log"
    log.write_bytes(b"".join(b"T stdout F %d\n" % i for i in range(9)))
    ended = asyncio.Event()
    copying = asyncio.create_task(logfile.copy_log(log, follow=True, ended=ended, tail=2))
    await asyncio.sleep(0.1)
    with log.open("ab") as file:
        file.write(b"T stdout F new\n")
    ended.set()
    await copying
    assert capfd.readouterr().out == "7\n8\nnew\n"


async def test_copy_log_follows_a_rotation(tmp_path, capfd):
    log = tmp_path / "c.log"
    log.write_bytes(b"T stdout F old\n")
    ended = asyncio.Event()
    copying = asyncio.create_task(logfile.copy_log(log, follow=True, ended=ended))
    await asyncio.sleep(0.1)
    log.rename(tmp_path / "c.log.1")
    log.write_bytes(b"T stdout F fresh\n")
    ended.set()
    await copying
    assert capfd.readouterr().out == "old\nfresh\n"


@pytest.mark.parametrize(("text", "wanted"), [("64m", 64 << 20), ("5", 5), ("2K", 2048)])
def test_byte_count(text, wanted):
    assert byte_count(text) == wanted


def test_size_chooses_a_unit():
    assert [size(5), size(1536), size(3 << 20)] == ["5 B", "1.5 KiB", "3.0 MiB"]


def test_archive_reference_detects_the_kind(tmp_path):
    (tmp_path / "oci-layout").write_text("{}")
    assert archive_reference(tmp_path) == f"oci:{tmp_path}"
    for member, kind in (("oci-layout", "oci-archive"), ("manifest.json", "docker-archive")):
        file = tmp_path / f"{kind}.tar"
        (tmp_path / member).write_text("{}")
        with tarfile.open(file, "w") as archive:
            archive.add(tmp_path / member, member)
        assert archive_reference(file) == f"{kind}:{file}"
    with pytest.raises(Usage):
        archive_reference(tmp_path / "none")


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.name)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([command.name, "--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0
    assert "examples:\n" in text
    assert f"polypod {command.name}" in text


def test_the_whole_help_names_exit_status_environment_and_files(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for title in ("first steps:", "exit status:", "environment:", "files:"):
        assert title in text


def test_doctor_prints_a_row_per_probe(capsys):
    from polypod.doctor.report import PROBES

    main(["doctor"])
    assert len(capsys.readouterr().out.splitlines()) == len(PROBES) + 1


def test_plugins_names_the_simulator(capsys):
    assert main(["plugins"]) == 0
    assert "runtime type  simulator" in capsys.readouterr().out


def test_a_builtin_command_loads_no_plugin(capsys, monkeypatch):
    def loaded():
        raise AssertionError("a plugin was loaded")

    monkeypatch.setattr(sys.modules["polypod.cli.main"], "plugin_commands", loaded)
    assert main(["config", "show"]) == 0
    assert "server.root" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["image-from-host", "--help"], ["image", "from-host", "--help"]])
def test_a_plugins_image_command_has_both_names_and_is_listed_once(words, capsys):
    pytest.importorskip("polypod_image")
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 0
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "image-from-host" not in capsys.readouterr().out.split("commands:")[1]
