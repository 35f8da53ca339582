"""The life of a container: states, codes, what a program is given, logs, stop and remove."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path

import pytest
from conformance.pods import Pods, log_text, read_log, refused

from polypod.client import CriClient, CriError, pb
from polypod.plugin.runtime import Feature

MAX_LINE = 16 * 1024


async def state(cri: CriClient, box: str) -> int:
    return (await cri.container_status(box)).status.state


# States


async def test_states_follow_each_other(pods: Pods, cri: CriClient):
    pod = await pods.run()
    box = await pod.create("sleep 1000")
    created = (await cri.container_status(box)).status
    assert created.state == pb.CONTAINER_CREATED
    assert created.created_at > 0
    assert (created.started_at, created.finished_at) == (0, 0)
    await cri.start_container(box)
    running = (await cri.container_status(box)).status
    assert running.state == pb.CONTAINER_RUNNING
    assert running.started_at >= running.created_at
    assert running.finished_at == 0
    await cri.stop_container(box, 0)
    exited = (await cri.container_status(box)).status
    assert exited.state == pb.CONTAINER_EXITED
    assert exited.finished_at >= exited.started_at
    await cri.remove_container(box)
    assert await cri.list_containers() == []


async def test_a_pod_that_is_stopped_has_ended_its_containers(pods: Pods, cri: CriClient):
    pod = await pods.run()
    running, created = await pod.start(name="running"), await pod.create(name="created")
    await cri.stop_sandbox(pod.id)
    assert (await pod.status()).state == pb.SANDBOX_NOTREADY
    assert await state(cri, running) == pb.CONTAINER_EXITED
    with refused("FAILED_PRECONDITION", "not ready"):
        await cri.start_container(created)
    await cri.remove_sandbox(pod.id)
    assert (await cri.list_sandboxes(), await cri.list_containers()) == ([], [])


@pytest.mark.parametrize("code", [0, 1, 42, 255])
async def test_exit_codes_and_reasons(pods: Pods, code: int):
    pod = await pods.run()
    status = (await pod.run(f"exit {code}")).status
    expected = "Completed" if code == 0 else "Error"
    assert (status.exit_code, status.reason) == (code, expected)


async def test_a_signal_is_told_as_128_and_more(pods: Pods, handler):
    # In a pid namespace of its own it would be number 1, which is spared signals of its own.
    handler.needs(Feature.SHARED_PID)
    options = pb.NamespaceOption(pid=pb.POD)
    context = pb.LinuxSandboxSecurityContext(namespace_options=options)
    pod = await pods.run(security=context)
    assert (await pod.run("kill -TERM $$; sleep 1000")).code == 143


@pytest.mark.parametrize("program", ["/no/such/program", "no-such-program"])
async def test_a5_07_a_program_that_is_not_there_is_a_start_error(pods, cri, program: str):
    pod = await pods.run()
    box = await pod.create([program])
    with refused("UNKNOWN", program):
        await cri.start_container(box)
    status = (await cri.container_status(box)).status
    assert status.state == pb.CONTAINER_EXITED
    assert (status.exit_code, status.reason) == (128, "StartError")
    assert program in status.message
    assert status.finished_at >= status.started_at > 0
    with refused("FAILED_PRECONDITION", "exited"):
        await cri.start_container(box)
    await cri.remove_container(box)


# Stop


async def test_stop_sends_the_stop_signal_first(pods: Pods, cri: CriClient):
    pod = await pods.run()
    script = "trap 'echo told; exit 7' TERM; echo ready; while true; do sleep 0.02; done"
    box = await pod.start(script)
    await pod.said(box, "ready")
    await cri.stop_container(box, 30)
    ended = await pod.ended(box)
    assert (ended.code, ended.out) == (7, "ready\ntold\n")


async def test_stop_kills_after_the_grace(pods: Pods, cri: CriClient):
    pod = await pods.run()
    box = await pod.start("trap '' TERM; echo ready; while true; do sleep 0.02; done")
    await pod.said(box, "ready")
    await cri.stop_container(box, 1)
    assert (await pod.ended(box)).code == 137


async def test_the_requests_stop_signal_counts_and_is_reported(pods: Pods, cri: CriClient):
    pod = await pods.run()
    script = "trap 'exit 9' USR1; echo ready; while true; do sleep 0.02; done"
    box = await pod.start(script, stop_signal=pb.SIGNAL_SIGUSR1)
    assert (await cri.container_status(box)).status.stop_signal == pb.SIGNAL_SIGUSR1
    await pod.said(box, "ready")
    await cri.stop_container(box, 30)
    assert (await pod.ended(box)).code == 9


async def test_a_later_stop_with_less_patience_shortens_the_first(pods: Pods, cri: CriClient):
    pod = await pods.run()
    box = await pod.start("trap '' TERM; echo ready; while true; do sleep 0.02; done")
    await pod.said(box, "ready")
    patient = asyncio.ensure_future(cri.stop_container(box, 600))
    await asyncio.sleep(0.1)
    await cri.stop_container(box, 0)
    await patient
    assert await state(cri, box) == pb.CONTAINER_EXITED


async def test_remove_kills_what_runs(pods: Pods, cri: CriClient):
    pod = await pods.run()
    box = await pod.start("trap '' TERM; while true; do sleep 0.02; done")
    await cri.remove_container(box)
    assert await cri.list_containers() == []


# What a program is given


async def test_command_and_args(pods: Pods):
    pod = await pods.run()
    whole = await pod.run(["echo", "one", "two  three", ""], name="a")
    assert whole.out == "one two  three \n"
    split = await pod.run(["echo"], args=["one", "*", "$HOME"], name="b")
    assert split.out == "one * $HOME\n"


async def test_environment(pods: Pods):
    pod = await pods.run()
    envs = [pb.KeyValue(key="A", value=b"1"), pb.KeyValue(key="PATH", value=b"/bin:/other")]
    ended = await pod.run(["env"], envs=envs)
    found = dict(line.split("=", 1) for line in ended.out.splitlines())
    assert (found["A"], found["PATH"]) == ("1", "/bin:/other")
    assert found["HOSTNAME"] == "pod"


async def test_a_program_starts_with_the_kernels_signals(pods: Pods, cri: CriClient, handler):
    handler.needs_kernel()
    pod = await pods.run()
    command = ["grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status"]
    box = await pod.start()
    executed = (await cri.exec_sync(box, command, 60)).stdout.decode()
    for said in ((await pod.run(command, name="first")).out, executed):
        assert [line.split()[1] for line in said.splitlines()] == ["0" * 16] * 3


async def test_environment_values_are_bytes_or_refused(pods: Pods):
    """An OCI runtime reads JSON, which cannot hold all of them; what must not be is another value."""
    pod = await pods.run()
    value = b"\xff\xfe caf\xe9"
    try:
        ended = await pod.run(["env"], envs=[pb.KeyValue(key="RAW", value=value)])
    except CriError as error:
        refusal = (error.code.name, "UTF-8" in error.text)
    else:
        assert b"RAW=" + value + b"\n" in Path(ended.status.log_path).read_bytes()
        return
    assert refusal == ("FAILED_PRECONDITION", True)


async def test_the_pods_hostname(pods: Pods):
    pod = await pods.run("named-so")
    assert (await pod.run(["hostname"])).out == "named-so\n"


@pytest.mark.parametrize("tty", [False, True])
async def test_a_terminal_is_there_only_when_asked_for(pods: Pods, handler, tty: bool):
    handler.needs(Feature.TTY)
    pod = await pods.run()
    ended = await pod.run("if tty; then echo yes >&2; else echo no >&2; fi", tty=tty)
    lines = read_log(ended.status.log_path)
    assert lines[-1].text.strip() == (b"yes" if tty else b"no")
    # All output of a terminal is stdout.
    assert lines[-1].stream == ("stdout" if tty else "stderr")


async def test_without_stdin_a_program_reads_its_end(pods: Pods):
    pod = await pods.run()
    assert (await pod.run("cat; echo end")).out == "end\n"


async def test_with_stdin_a_program_waits_for_it(pods: Pods, cri: CriClient):
    pod = await pods.run()
    box = await pod.start("cat; echo end", stdin=True)
    await asyncio.sleep(0.3)
    assert await state(cri, box) == pb.CONTAINER_RUNNING
    await cri.stop_container(box, 0)


# Logs


async def test_logs_have_the_format_of_cri(pods: Pods):
    pod = await pods.run()
    ended = await pod.run("echo out; echo err >&2; echo -n unfinished")
    lines = read_log(ended.status.log_path)
    # Two pipes have no common order; each stream has its own.
    stdout = [(each.tag, each.text) for each in lines if each.stream == "stdout"]
    assert stdout == [("F", b"out"), ("F", b"unfinished")]
    assert [(each.tag, each.text) for each in lines if each.stream == "stderr"] == [("F", b"err")]
    times = [datetime.fromisoformat(each.time[:26] + "+00:00") for each in lines]
    assert all(one.year > 2020 for one in times)


async def test_long_lines_are_split_and_marked(pods: Pods):
    pod = await pods.run()
    word = "0123456789abcdef" * 64
    script = f"{'; '.join(['echo -n ' + word] * 40)}; echo; echo short"
    lines = read_log((await pod.run(script)).status.log_path)
    text = b"".join(each.text for each in lines[:-1]).decode()
    assert text == word * 40
    assert all(len(each.text) <= MAX_LINE for each in lines)
    assert [each.tag for each in lines[:-1]] == ["P"] * (len(lines) - 2) + ["F"]
    assert (lines[-1].tag, lines[-1].text) == ("F", b"short")


async def test_reopening_writes_into_a_new_file(pods: Pods, cri: CriClient):
    pod = await pods.run()
    box = await pod.start("while true; do echo tick; sleep 0.02; done")
    path = Path((await cri.container_status(box)).status.log_path)
    await pod.said(box, "tick")
    old = path.with_suffix(".old")
    path.rename(old)
    await cri.reopen_log(box)
    assert path.exists()
    await pod.said(box, "tick")
    size = old.stat().st_size
    assert log_text(old).replace("tick\n", "") == ""
    await cri.stop_container(box, 0)
    assert old.stat().st_size == size


async def test_reopening_makes_a_missing_file_anew(pods: Pods, cri: CriClient):
    pod = await pods.run()
    box = await pod.start("while true; do echo tick; sleep 0.02; done")
    path = Path((await cri.container_status(box)).status.log_path)
    await pod.said(box, "tick")
    path.unlink()
    await cri.reopen_log(box)
    await pod.said(box, "tick")


# ExecSync


async def test_exec_has_output_code_and_the_containers_own_world(pods: Pods, cri: CriClient):
    pod = await pods.run()
    box = await pod.start(envs=[pb.KeyValue(key="A", value=b"1")])
    answer = await cri.exec_sync(box, ["sh", "-c", "echo out $A; echo err >&2; exit 3"])
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out 1\n", b"err\n", 3)


async def test_execs_at_once_do_not_mix(pods: Pods, cri: CriClient):
    pod = await pods.run()
    box = await pod.start()
    answers = await asyncio.gather(
        *(cri.exec_sync(box, ["sh", "-c", f"echo {number}; exit {number}"]) for number in range(10))
    )
    told = [(each.stdout, each.exit_code) for each in answers]
    assert told == [(f"{number}\n".encode(), number) for number in range(10)]


async def test_exec_output_is_capped_without_an_error(pods: Pods, cri: CriClient):
    pod = await pods.run()
    box = await pod.start()
    answer = await cri.exec_sync(box, ["sh", "-c", "seq 1 2000000; echo end >&2"])
    assert answer.exit_code == 0
    assert answer.stdout.startswith(b"1\n2\n3\n")
    assert len(answer.stdout) == (8 << 20) - 1024
    assert answer.stderr == b"end\n"


async def test_exec_does_not_wait_for_what_it_left_behind(pods: Pods, cri: CriClient):
    pod = await pods.run()
    box = await pod.start()
    answer = await cri.exec_sync(box, ["sh", "-c", "sleep 600 & echo done"], 60)
    assert (answer.stdout, answer.exit_code) == (b"done\n", 0)


async def test_exec_of_a_program_that_is_not_there(pods: Pods, cri: CriClient):
    pod = await pods.run()
    box = await pod.start()
    with refused("UNKNOWN", "/no/such"):
        await cri.exec_sync(box, ["/no/such"])
    assert await state(cri, box) == pb.CONTAINER_RUNNING
