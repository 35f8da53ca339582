"""Contract checks: what a program sees and writes, the signals it gets, the memory it may take."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace

from polypod.plugin.ids import ContainerId, new_id
from polypod.plugin.oci import User
from polypod.plugin.runtime import BackendState, Feature, StatsSource
from polypod.testing.runtime_checks_lifecycle import LOOP
from polypod.testing.runtime_lab import HOSTNAME, RuntimeLab, Wanted
from polypod.testing.suite import NotApplicable, expect, soon, until

TRAP = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"


async def check_arguments_arrive(lab: RuntimeLab) -> None:
    """The program gets its arguments as they are, spaces and quotes included."""
    box = await lab.finished(await lab.sandbox(), Wanted(("echo", "a  b", "'c'", "$HOME")))
    written = (await box.text())[0]
    expect(written == b"a  b 'c' $HOME\n", f"echo wrote {written!r}")


async def check_environment_arrives(lab: RuntimeLab) -> None:
    """The program gets the environment of the config, and nothing of the host's."""
    wanted = replace(lab.script("env"), env=("COLOUR=deep blue", "EMPTY="))
    box = await lab.finished(await lab.sandbox(), wanted)
    lines = (await box.text())[0].splitlines()
    expect(b"COLOUR=deep blue" in lines, f"COLOUR is missing in {lines}")
    expect(b"EMPTY=" in lines, f"EMPTY is missing in {lines}")
    names = {line.partition(b"=")[0].decode(errors="replace") for line in lines}
    leaked = names & (os.environ.keys() - {"PATH", "HOME", "PWD", "SHLVL", "_", "OLDPWD", "TERM"})
    expect(not leaked, f"of the host's environment it sees {sorted(leaked)}")


async def check_environment_keeps_bytes(lab: RuntimeLab) -> None:
    """A value of the environment that is not UTF-8 arrives byte for byte."""
    wanted = replace(lab.script("env"), env=("RAW=\udcff\udcfe",))
    box = await lab.finished(await lab.sandbox(), wanted)
    written = (await box.text())[0]
    expect(b"RAW=\xff\xfe\n" in written, f"env wrote {written!r}")


async def check_working_directory(lab: RuntimeLab) -> None:
    """The program begins in the working directory of the config."""
    wanted = replace(lab.script("pwd"), cwd="/tmp")  # noqa: S108 - a path in the container
    box = await lab.finished(await lab.sandbox(), wanted)
    written = (await box.text())[0]
    expect(written == b"/tmp\n", f"pwd wrote {written!r}")


async def check_hostname(lab: RuntimeLab) -> None:
    """The container has the hostname of its sandbox."""
    box = await lab.finished(await lab.sandbox(), Wanted(("hostname",)))
    written = (await box.text())[0]
    expect(written == HOSTNAME.encode() + b"\n", f"hostname wrote {written!r}")


async def check_user(lab: RuntimeLab) -> None:
    """The program runs as the user and the group of the config."""
    wanted = replace(lab.script("id -u; id -g"), user=User(1000, 1001))
    box = await lab.finished(await lab.sandbox(), wanted)
    written = (await box.text())[0]
    expect(written == b"1000\n1001\n", f"id wrote {written!r}")


async def check_streams_are_separate(lab: RuntimeLab) -> None:
    """Stdout and stderr arrive separately."""
    box = await lab.finished(await lab.sandbox(), "echo out; echo err >&2")
    await box.silent()
    written = await box.text()
    expect(written == (b"out\n", b"err\n"), f"it wrote {written!r}")


async def check_stdin_arrives(lab: RuntimeLab) -> None:
    """What is written to stdin arrives, and its end as well."""
    box = await lab.run(await lab.sandbox(), Wanted(("cat",)), stdin=True)
    box.feed(b"one\ntwo")
    await box.says(b"one\ntwo")
    expect((await box.status()).state is BackendState.RUNNING, "it ended before its stdin")
    box.end_input()
    expect((await box.ended()).status.code == 0, "cat did not end with 0")


async def check_no_stdin_is_empty(lab: RuntimeLab) -> None:
    """Without a stdin the program reads an end of file at once."""
    box = await lab.finished(await lab.sandbox(), Wanted(("cat",)))
    expect((await box.ended()).status.code == 0, "cat of nothing did not end with 0")


async def check_large_output_is_complete(lab: RuntimeLab) -> None:
    """Output larger than a pipe arrives whole and in order."""
    box = await lab.finished(await lab.sandbox(), "seq 1 30000")
    await box.silent()
    written = (await box.text())[0]
    wanted = b"".join(b"%d\n" % number for number in range(1, 30001))
    expect(written == wanted, f"{len(written)} of {len(wanted)} bytes came, or in another order")


async def check_descriptors_of_the_host_are_closed(lab: RuntimeLab) -> None:
    """The streams end with the last process of the container: nobody else holds them."""
    box = await lab.finished(await lab.sandbox(), "echo bye")
    await box.delete()
    await box.silent()


async def check_terminal(lab: RuntimeLab) -> None:
    """With a terminal, the master of its pty comes over the console socket, and stdio is that pty."""
    if Feature.TTY not in lab.subject.type.features:
        raise NotApplicable("the type does not declare the feature tty")
    wanted = replace(lab.script("tty; read go; echo got $go"), terminal=True)
    box = await lab.create(await lab.sandbox(), wanted)
    await box.start()
    master = await box.terminal()
    await _terminal_says(master, b"/dev/")
    os.write(master, b"input\n")
    await _terminal_says(master, b"got input")
    expect((await box.ended()).status.code == 0, "it did not end with 0")


async def _terminal_says(master: int, text: bytes) -> None:
    seen = bytearray()

    def read() -> bool:
        try:
            seen.extend(os.read(master, 4096))
        except OSError:  # nothing now, or the other side is gone
            return text in seen
        return text in seen

    await until(read, f"{text!r} is written to the terminal")


async def check_kill_gives_signal_and_code(lab: RuntimeLab) -> None:
    """A program ended by a signal has code 128 + signal, and the signal is told."""
    box = await lab.run(await lab.sandbox(), LOOP)
    await box.says(b"ready")
    await box.kill(signal.SIGKILL)
    status = (await box.ended()).status
    expect(status.code == 137, f"the code is {status.code}")
    expect(status.signal in {0, signal.SIGKILL}, f"the signal is {status.signal}")


async def check_term_reaches_the_program(lab: RuntimeLab) -> None:
    """A signal that the program handles is handled."""
    box = await lab.run(await lab.sandbox(), TRAP)
    await box.says(b"ready")
    await box.kill(signal.SIGTERM)
    code = (await box.ended()).status.code
    expect(code == 7, f"the program's handler was to end it with 7; the code is {code}")


async def check_ignored_signal_is_ignored(lab: RuntimeLab) -> None:
    """A signal that the program ignores does not end it; SIGKILL does."""
    box = await lab.run(await lab.sandbox(), f"trap '' TERM; {LOOP}")
    await box.says(b"ready")
    await box.kill(signal.SIGTERM)
    await asyncio.sleep(0.2)
    expect((await box.status()).state is BackendState.RUNNING, "SIGTERM ended it")
    await box.kill(signal.SIGKILL, whole=True)
    expect((await box.ended()).status.code == 137, "SIGKILL did not end it with 137")


async def check_kill_whole_leaves_nobody(lab: RuntimeLab) -> None:
    """``kill(whole=True)`` reaches every process of the container."""
    box = await lab.run(await lab.sandbox(), "sleep 1000 & sleep 1000 & echo ready; wait")
    await box.says(b"ready")
    await box.kill(signal.SIGKILL, whole=True)
    await box.ended()
    await box.silent()


async def check_delete_leaves_nobody(lab: RuntimeLab) -> None:
    """After ``delete`` no process of the container lives, also none that its first one left behind."""
    box = await lab.finished(await lab.sandbox(), "sleep 1000 & exit 0")
    await box.kill(signal.SIGKILL, whole=True)
    await box.delete()
    await box.silent()


async def check_kill_of_gone_is_no_error(lab: RuntimeLab) -> None:
    """``kill`` of a container that is gone already, or that never was, is no error."""
    box = await lab.finished(await lab.sandbox(), "exit 0")
    await box.kill(signal.SIGTERM)
    await box.kill(signal.SIGKILL, whole=True)
    await soon(lab.backend.kill(ContainerId(new_id()), signal.SIGKILL), "kill of an unknown id")


async def check_signal_zero_changes_nothing(lab: RuntimeLab) -> None:
    """A signal that does nothing by default leaves the container running."""
    box = await lab.run(await lab.sandbox(), LOOP)
    await box.says(b"ready")
    await box.kill(signal.SIGWINCH)
    await asyncio.sleep(0.1)
    expect((await box.status()).state is BackendState.RUNNING, "SIGWINCH ended it")


async def check_out_of_memory_is_told(lab: RuntimeLab) -> None:
    """A container killed for its memory limit is told as OOM-killed, in the event and the status."""
    if not lab.subject.out_of_memory:
        raise NotApplicable("the subject has no program that runs out of memory")
    wanted = Wanted(lab.subject.out_of_memory, memory_limit_bytes=32 << 20)
    box = await lab.finished(await lab.sandbox(), wanted)
    exited = await box.ended()
    expect(exited.oom_killed, f"it is not told as OOM-killed: {exited.status}")
    expect(exited.status.code != 0, "its code is 0")
    expect((await box.status()).oom_killed, "its status does not know")


def _stats(lab: RuntimeLab) -> StatsSource:
    if not isinstance(lab.backend, StatsSource):
        raise NotApplicable("the backend has no StatsSource")
    return lab.backend


async def check_stats_know_the_living_alone(lab: RuntimeLab) -> None:
    """``stats`` tells of running containers; the others are left out."""
    source, sandbox = _stats(lab), await lab.sandbox()
    alive, dead = await lab.run(sandbox, LOOP), await lab.finished(sandbox, "exit 0")
    told = await soon(source.stats([alive.id, dead.id, ContainerId(new_id())]), "stats")
    expect(set(told) == {alive.id}, f"it tells of {len(told)} containers, one is alive")
    expect(told[alive.id].timestamp_ns > 0, "the counters have no time")


async def check_stats_grow(lab: RuntimeLab) -> None:
    """Time and cpu of a busy container grow from sample to sample."""
    source = _stats(lab)
    box = await lab.run(await lab.sandbox(), "echo ready; while :; do :; done")
    await box.says(b"ready")
    first = (await soon(source.stats([box.id]), "stats"))[box.id]
    if first.cpu_usage_core_ns is None:
        raise NotApplicable("the backend cannot know the cpu time")
    later = first
    for _ in range(200):
        await asyncio.sleep(0.05)
        later = (await soon(source.stats([box.id]), "stats"))[box.id]
        if (later.cpu_usage_core_ns or 0) > first.cpu_usage_core_ns:
            break
    grown = (later.cpu_usage_core_ns or 0) > first.cpu_usage_core_ns
    expect(grown, "the cpu time of a busy container does not grow")
    expect(later.timestamp_ns > first.timestamp_ns, "the time of the sample does not grow")


async def check_stats_count_memory(lab: RuntimeLab) -> None:
    """A running container takes memory, and its working set is not larger than its usage."""
    source = _stats(lab)
    box = await lab.run(await lab.sandbox(), LOOP)
    await box.says(b"ready")
    usage = (await soon(source.stats([box.id]), "stats"))[box.id]
    if usage.memory_usage_bytes is None:
        raise NotApplicable("the backend cannot know the memory")
    expect(usage.memory_usage_bytes > 0, "a running container takes no memory")
    working = usage.memory_working_set_bytes
    expect(
        working is None or working <= usage.memory_usage_bytes,
        f"the working set {working} is larger than the usage {usage.memory_usage_bytes}",
    )


CHECKS = tuple(value for name, value in list(globals().items()) if name.startswith("check_"))
