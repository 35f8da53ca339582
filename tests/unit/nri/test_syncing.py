"""Synchronize: everything once, whatever happens meanwhile, in as many parts as it takes."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from support.nri import container_facts, sandbox_facts

from polypod.plugin import PodMetadata, SandboxConfig
from polypod_nri import syncing
from polypod_nri.wire import api


def names(request):
    return [each.id for each in (*request.pods, *request.containers)]


async def test_what_there_is_is_told_first(lab, services):
    services.add(sandbox_facts(), container_facts(state="running"), container_facts(2))
    plugin = await lab.connect()
    (seen,) = plugin.of("Synchronize")
    assert names(seen) == [sandbox_facts().id, container_facts().id, container_facts(2).id]
    assert [each.state for each in seen.containers] == [
        api.CONTAINER_RUNNING,
        api.CONTAINER_CREATED,
    ]
    pod = seen.pods[0]
    assert (pod.name, pod.namespace, pod.runtime_handler) == ("pod1", "ns", "fast")
    assert dict(pod.labels) == {"a": "b"}
    assert list(pod.ips) == ["10.0.0.2"]
    assert list(seen.containers[0].env) == ["PATH=/bin", "KEEP=1"]


async def test_a_container_that_is_made_meanwhile_is_told_afterwards_and_once(lab):
    """It is not in what was told: so its own call comes, when Synchronize is answered."""
    release = asyncio.Event()

    async def wait(_request):
        await release.wait()

    plugin = await lab.connect(wait=False, Synchronize=wait)
    await lab.until(lambda: plugin.calls)
    making = asyncio.create_task(lab.create(container_facts()))
    await asyncio.sleep(0.05)
    assert plugin.methods() == ["Synchronize"]
    release.set()
    await making
    assert names(plugin.of("Synchronize")[0]) == []
    assert [each.container.id for each in plugin.of("CreateContainer")] == [container_facts().id]


async def test_a_container_that_others_were_told_of_is_in_what_is_told(lab):
    """Its call was made before the second plugin came, its record is written after: the gap between."""
    release = asyncio.Event()

    async def wait(_request):
        await release.wait()

    first = await lab.connect("first", "10", CreateContainer=wait)
    making = asyncio.create_task(lab.create(container_facts()))
    await lab.until(lambda: first.of("CreateContainer"))
    second = await lab.connect("second", "20")
    release.set()
    await making
    await lab.until(lambda: second.of("PostCreateContainer"))
    assert names(second.of("Synchronize")[0]) == [container_facts().id]
    assert second.of("CreateContainer") == []


async def test_a_sandbox_in_the_making_is_told_too(lab, services):
    release = asyncio.Event()

    async def wait(_request):
        await release.wait()

    first = await lab.connect("first", "10", RunPodSandbox=wait)
    facts = sandbox_facts(state="creating")
    services.add(facts)
    making = asyncio.create_task(lab.plugin.polypod_before_sandbox_ready(facts))
    await lab.until(lambda: first.of("RunPodSandbox"))
    second = await lab.connect("second", "20")
    release.set()
    await making
    assert names(second.of("Synchronize")[0]) == [facts.id]
    assert second.of("RunPodSandbox") == []


async def test_no_container_is_lost_or_doubled_however_plugins_come(lab, services):
    """Containers are made without pause while plugins connect: each one learns of each exactly once."""
    services.add(sandbox_facts())
    stop = asyncio.Event()
    made = []

    async def make(first):
        number = first
        while not stop.is_set():
            await lab.create(container_facts(number))
            made.append(container_facts(number).id)
            number += 10
            await asyncio.sleep(0.001)  # with no plugin to ask, nothing else gives way to others

    makers = [asyncio.create_task(make(first)) for first in range(1, 5)]
    plugins = []
    for number in range(8):
        plugins.append(await lab.connect(f"p{number}", f"{number:02}"))
        await asyncio.sleep(0.01)
    stop.set()
    await asyncio.gather(*makers)
    for plugin in plugins:
        synced = [each.id for each in plugin.of("Synchronize")[0].containers]
        told = [each.container.id for each in plugin.of("CreateContainer")]
        assert sorted(synced + told) == sorted(made)


async def test_a_container_that_could_not_be_made_is_taken_back(lab, services):
    plugin = await lab.connect()
    facts = container_facts()
    services.add(replace(facts, state="creating"))
    await lab.plugin.polypod_adjust_container(
        facts.id,
        facts.sandbox_id,
        SandboxConfig(PodMetadata("p", "u", "n")),
        facts.request,
        facts.config,
    )
    services.containers_by_id.clear()
    lab.plugin.polypod_container_removed(facts.id)
    await lab.until(lambda: plugin.of("RemoveContainer"))
    later = await lab.connect("later", "20")
    assert names(later.of("Synchronize")[0]) == []


async def test_what_no_plugin_was_told_of_is_not_taken_back(lab):
    plugin = await lab.connect()
    lab.plugin.polypod_container_removed(container_facts(7).id)
    lab.plugin.polypod_sandbox_removed(sandbox_facts(7).id)
    await lab.plugin.polypod_before_container_start(container_facts())
    assert plugin.methods() == ["Synchronize", "StartContainer"]


# Parts


def test_parts_are_as_few_as_fit():
    pods = [sandbox_facts(number) for number in range(10)]
    containers = [container_facts(number) for number in range(10)]
    size = max(part.ByteSize() for part in syncing.split(pods, containers, 1))
    parts = list(syncing.split(pods, containers, size * 4))
    assert [name for part in parts for name in names(part)] == [
        each.id for each in (*pods, *containers)
    ]
    assert 5 <= len(parts) < 10
    assert all(part.ByteSize() <= size * 4 for part in parts)


def test_nothing_is_one_empty_part():
    assert list(syncing.split([], [])) == [api.SynchronizeRequest()]


async def test_a_plugin_gets_all_parts(lab, services, monkeypatch):
    monkeypatch.setattr(syncing.split, "__defaults__", (2000,))
    facts = [container_facts(number) for number in range(50)]
    services.add(*facts)
    plugin = await lab.connect()
    assert names(plugin.of("Synchronize")[0]) == [each.id for each in facts]


async def test_a_state_of_many_megabytes_goes_over(lab, services):
    annotations = {f"key{n}": "x" * 1000 for n in range(100)}
    facts = [container_facts(number) for number in range(80)]
    services.add(
        *(replace(each, request=replace(each.request, annotations=annotations)) for each in facts)
    )
    plugin = await lab.connect()
    (seen,) = plugin.of("Synchronize")
    assert seen.ByteSize() > 8_000_000
    assert names(seen) == [each.id for each in facts]


async def test_one_that_does_not_take_parts_is_closed(lab, services, monkeypatch):
    monkeypatch.setattr(syncing.split, "__defaults__", (2000,))
    services.add(*(container_facts(number) for number in range(50)))
    plugin = await lab.connect(wait=False)

    async def whole(_method, _request):
        return api.SynchronizeResponse()

    plugin.stub._handle = whole
    await lab.until(lambda: lab.state_of("10-logger") == "closed")
    assert "does not take Synchronize in parts" in lab.services.plugins()["10-logger"]["reason"]
