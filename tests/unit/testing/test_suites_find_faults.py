"""The suites are tested too: each kind of broken plugin must fail the check made for it."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace

import pytest

from polypod.plugin.runtime import BackendState, Inventory
from polypod.plugin.services import ExitStatus
from polypod.testing import image_store_suite, network_suite, runtime_suite, suite
from polypod.testing.memory_images import MemoryImageStore
from polypod.testing.memory_network import MemoryNetwork
from polypod.testing.simulator import SimulatorBackend, simulator_type
from polypod.testing.subjects import MemoryImageSubject, MemoryNetworkSubject, SimulatorSubject
from polypod.testing.suite import NotApplicable, Outcome, Violation, judge
from polypod.testing.world import World


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """What never comes is found out sooner."""
    monkeypatch.setattr(suite, "PATIENCE_S", 0.7)


class BrokenSimulator(SimulatorSubject):
    def __init__(self, directory, kind):
        super().__init__(directory)
        world = World(directory / "world")
        broken = kind(world)

        async def open_(_context):
            broken.reopen()
            return broken

        self.type = replace(simulator_type(), open=open_)


class Reopened(SimulatorBackend):
    def reopen(self):
        self._closed = False
        self._events = self.world.listen()


class StartsAtCreate(Reopened):
    async def create(self, spec, /):
        await super().create(spec)
        self.world.run(self.world.container(spec.id))


class TellsTwice(Reopened):
    async def events(self):
        async for event in super().events():
            yield event
            yield event


class TellsNothing(Reopened):
    async def events(self):
        await asyncio.Event().wait()
        yield


class LosesCodes(Reopened):
    async def events(self):
        async for event in super().events():
            yield replace(event, status=replace(event.status, code=0))


class StrictDelete(Reopened):
    async def delete(self, container_id, /):
        self.world.container(container_id)
        await super().delete(container_id)


class StrictKill(Reopened):
    async def kill(self, container_id, signal_, /, *, whole=False):
        self.world.container(container_id)
        await super().kill(container_id, signal_, whole=whole)


class StrictStop(Reopened):
    async def stop_sandbox(self, sandbox_id, /):
        _ = self.world.sandboxes[sandbox_id]
        await super().stop_sandbox(sandbox_id)


class StopsNothing(Reopened):
    async def stop_sandbox(self, sandbox_id, /):
        return


class Deaf(Reopened):
    async def kill(self, container_id, signal_, /, *, whole=False):
        if signal_ == signal.SIGKILL:
            await super().kill(container_id, signal_, whole=whole)


class Killer(Reopened):
    async def kill(self, container_id, signal_, /, *, whole=False):
        await super().kill(container_id, signal.SIGKILL, whole=True)


class ListsNothing(Reopened):
    async def list(self):
        return Inventory({}, {})


class Forgets(Reopened):
    async def close(self):
        await super().close()
        await self.world.close()


class AcceptsAnything(Reopened):
    async def start(self, container_id, /):
        container = self.world.container(container_id)
        return replace(container.status, state=BackendState.RUNNING)


class ExecsOutlive(Reopened):
    """An exec whose session cannot be ended."""

    async def exec(self, spec, /):
        session = await super().exec(spec)

        async def kill(_signal, /):
            return

        session.kill = kill
        return session


class SharedStreams(Reopened):
    async def create(self, spec, /):
        stdio = replace(spec.stdio, stderr=spec.stdio.stdout)
        await super().create(replace(spec, stdio=stdio))


class NoEnvironment(Reopened):
    async def create(self, spec, /):
        process = replace(spec.config.process, env=("PATH=/bin",), cwd="/")
        await super().create(replace(spec, config=replace(spec.config, process=process)))


class StatsOfTheDead(Reopened):
    async def stats(self, container_ids, /):
        told = dict(await super().stats(container_ids))
        return told | {each: next(iter(told.values())) for each in container_ids if told}


RUNTIME = [
    (StartsAtCreate, "check_created_container_does_not_run"),
    (TellsTwice, "check_exit_is_told_once"),
    (TellsNothing, "check_exit_code_zero"),
    (LosesCodes, "check_exit_code_is_kept"),
    (StrictDelete, "check_delete_is_idempotent"),
    (StrictKill, "check_kill_of_gone_is_no_error"),
    (StrictStop, "check_unknown_sandbox_is_stopped_and_removed"),
    (StopsNothing, "check_stop_sandbox_ends_its_containers"),
    (Deaf, "check_term_reaches_the_program"),
    (Killer, "check_ignored_signal_is_ignored"),
    (Killer, "check_term_reaches_the_program"),
    (ListsNothing, "check_sandbox_is_listed_healthy"),
    (ListsNothing, "check_restart_finds_everything_alive"),
    (Forgets, "check_restart_finds_everything_alive"),
    (Forgets, "check_exit_while_away_is_found"),
    (AcceptsAnything, "check_missing_program_fails_the_start"),
    (AcceptsAnything, "check_second_start_is_refused"),
    (ExecsOutlive, "check_exec_kill_leaves_the_container"),
    (SharedStreams, "check_streams_are_separate"),
    (NoEnvironment, "check_environment_arrives"),
    (NoEnvironment, "check_environment_keeps_bytes"),
    (NoEnvironment, "check_working_directory"),
    (StatsOfTheDead, "check_stats_know_the_living_alone"),
]
BY_NAME = suite.named([*runtime_suite.CHECKS, *image_store_suite.CHECKS, *network_suite.CHECKS])


@pytest.mark.parametrize(("kind", "check"), RUNTIME, ids=[f"{k.__name__}-{c}" for k, c in RUNTIME])
async def test_runtime_suite_finds(kind, check, tmp_path):
    subject = BrokenSimulator(tmp_path, kind)
    verdict = await runtime_suite.run_check(BY_NAME[check], subject)
    assert verdict.outcome is Outcome.FAILED
    assert verdict.detail


class Amnesia(MemoryImageStore):
    def _load_note(self):
        return


class OldestFirst(MemoryImageStore):
    async def list(self):
        return list(reversed(await super().list()))


class Immortal(MemoryImageStore):
    async def remove(self, image_id, /):
        return


class OneRootfs(MemoryImageStore):
    async def prepare(self, container_id, image_id, form, /):
        await super().prepare(container_id, image_id, form)
        return await super().prepare("shared", image_id, form)


class Unlimited(MemoryImageStore):
    async def image_file(self, image_id, path, limit, /):
        return await super().image_file(image_id, path, 1 << 40)


class HostFiles(MemoryImageStore):
    async def image_file(self, image_id, path, limit, /):
        with open("/" + path.lstrip("./"), "rb") as file:
            return file.read()


class KeepsRootfs(MemoryImageStore):
    async def release(self, container_id, /):
        return


IMAGES = [
    (Amnesia, "check_restart_keeps_images"),
    (OldestFirst, "check_list_is_newest_first"),
    (Immortal, "check_removed_image_is_gone"),
    (Immortal, "check_space_comes_back"),
    (OneRootfs, "check_containers_do_not_share_writes"),
    (Unlimited, "check_image_file_has_a_limit"),
    (HostFiles, "check_image_file_stays_inside"),
    (KeepsRootfs, "check_prepared_and_released"),
    (KeepsRootfs, "check_prepare_is_idempotent"),
]


@pytest.mark.parametrize(("kind", "check"), IMAGES, ids=[f"{k.__name__}-{c}" for k, c in IMAGES])
async def test_image_suite_finds(kind, check, tmp_path):
    class Subject(MemoryImageSubject):
        async def open(self):
            store = await super().open()
            return kind(tmp_path, store.sources)

    verdict = await image_store_suite.run_check(BY_NAME[check], Subject(tmp_path))
    assert verdict.outcome is Outcome.FAILED
    assert verdict.detail


class OneAddress(MemoryNetwork):
    def _free(self, subnet):
        return str(subnet[10])


class Leaks(MemoryNetwork):
    async def detach(self, sandbox_id, attachment, /):
        return


class NeedsAttachment(MemoryNetwork):
    async def detach(self, sandbox_id, attachment, /):
        if attachment is not None:
            await super().detach(sandbox_id, attachment)


class LeasesFirst(MemoryNetwork):
    """Takes the address, then waits, and gives nothing back when it is cancelled."""

    async def attach(self, request, /):
        attachment = await super().attach(request)
        await asyncio.sleep(0.01)
        return attachment


class Masks(MemoryNetwork):
    async def attach(self, request, /):
        attachment = await super().attach(request)
        return replace(attachment, ips=tuple(f"{ip}/24" for ip in attachment.ips))


class Binary(MemoryNetwork):
    async def attach(self, request, /):
        return replace(await super().attach(request), result={"raw": b"\x00"})


class Volatile(MemoryNetwork):
    def __init__(self, *, root):
        super().__init__()


NETWORKS = [
    (OneAddress, "check_addresses_are_unique"),
    (OneAddress, "check_concurrent_attaches"),
    (Leaks, "check_detach_takes_back"),
    (NeedsAttachment, "check_detach_without_attachment"),
    (LeasesFirst, "check_cancelled_attach_leaves_nothing"),
    (Masks, "check_attach_gives_addresses"),
    (Binary, "check_result_is_json"),
    (Volatile, "check_restart_keeps_leases"),
    (Volatile, "check_close_keeps_leases"),
]


@pytest.mark.parametrize(
    ("kind", "check"), NETWORKS, ids=[f"{k.__name__}-{c}" for k, c in NETWORKS]
)
async def test_network_suite_finds(kind, check, tmp_path):
    class Subject(MemoryNetworkSubject):
        async def open(self):
            return kind(root=tmp_path)

    verdict = await network_suite.run_check(BY_NAME[check], Subject(tmp_path))
    assert verdict.outcome is Outcome.FAILED
    assert verdict.detail


# Verdicts


async def _passes():
    return


async def _fails():
    raise Violation("it does not hold")


async def _does_not_apply():
    raise NotApplicable("no such power")


@pytest.mark.parametrize(
    ("work", "exceptions", "outcome", "good"),
    [
        (_passes, {}, Outcome.PASSED, True),
        (_fails, {}, Outcome.FAILED, False),
        (_does_not_apply, {}, Outcome.NOT_APPLICABLE, True),
        (_fails, {"check": "by design"}, Outcome.EXCEPTED, True),
        (_passes, {"check": "by design"}, Outcome.NEEDLESS, False),
    ],
    ids=lambda value: value.value if isinstance(value, Outcome) else "",
)
async def test_judge_knows_every_outcome(work, exceptions, outcome, good):
    verdict = await judge("check", work, exceptions)
    assert verdict.outcome is outcome
    assert verdict.good is good


@pytest.mark.parametrize(
    ("checks", "least"),
    [(runtime_suite.CHECKS, 70), (image_store_suite.CHECKS, 25), (network_suite.CHECKS, 16)],
    ids=["runtime", "images", "network"],
)
def test_every_check_states_its_sentence(checks, least):
    assert len({check.__name__ for check in checks}) == len(checks) >= least
    for check in checks:
        assert (check.__doc__ or "").strip().endswith("."), check.__name__


async def test_unknown_exit_is_not_taken_for_zero():
    """A code that nobody knows must stay None on its way through the simulator's notes."""
    assert ExitStatus(None).code is None
