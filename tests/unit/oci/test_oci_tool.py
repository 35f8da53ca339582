"""Runs of the runtime's binary, with simulated programs in its place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from polypod.plugin import BackendError, Stdio
from polypod.testing.fake_supervisor import FakeSupervisor
from polypod_oci.features import OLDEST_VERSION
from polypod_oci.options import Options
from polypod_oci.tool import Tool


def tool(supervisor: FakeSupervisor, program: str = "echo") -> Tool:
    return Tool(Options(f"/bin/{program}", Path("/run/r"), ("--debug",)), supervisor, "mine")


async def test_options_come_before_the_command():
    supervisor = FakeSupervisor()
    words = (await tool(supervisor).run("start", "abc")).decode().split()
    assert words[:4] == ["--root", "/run/r", "--debug", "--log"]
    assert words[5:] == ["--log-format", "json", "start", "abc"]
    assert await supervisor.processes() == []


async def test_a_failure_names_runtime_and_command():
    supervisor = FakeSupervisor()
    with pytest.raises(BackendError, match=r"^false start ended with 1: it said nothing$"):
        await tool(supervisor, "false").run("start", "abc")
    assert await supervisor.processes() == []


async def test_a_containers_streams_are_handed_on():
    ours, theirs = os.pipe()
    try:
        printed = await tool(FakeSupervisor()).run("create", stdio=Stdio(None, theirs, theirs))
        assert printed == b""
        assert os.read(ours, 4096).endswith(b"create\n")
    finally:
        os.close(ours)
        os.close(theirs)


async def test_a_runtime_without_features_has_those_of_1_0():
    facts, exec_groups = await tool(FakeSupervisor(), "true").facts()
    assert facts.version == OLDEST_VERSION
    assert not exec_groups


async def test_runs_are_labelled_so_that_the_next_daemon_ends_them():
    supervisor = FakeSupervisor()
    seen = []
    execute = supervisor.execute

    async def spy(process_id, plan, /, *, fds, labels=None):
        seen.append(labels)
        return await execute(process_id, plan, fds=fds, labels=labels)

    supervisor.execute = spy
    await tool(supervisor).run("start", "abc")
    assert seen == [{"handler": "mine", "kind": "tool"}]
