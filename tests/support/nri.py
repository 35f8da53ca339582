"""NRI without a server: plugins over real sockets, facts and services of the tests' own."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from polypod.plugin import (
    ContainerConfig,
    ContainerId,
    ContainerMetadata,
    ImageSpec,
    NotFound,
    OciConfig,
    PodMetadata,
    Process,
    SandboxConfig,
    SandboxId,
)
from polypod.plugin.observer import ContainerFacts, SandboxFacts, Snapshot
from polypod_nri.stub import PluginStub
from polypod_nri.wire import api

LIMIT_S = 5.0


def sandbox_facts(number=1, state="ready"):
    return SandboxFacts(
        SandboxId(f"{number:064x}"),
        SandboxConfig(PodMetadata(f"pod{number}", f"uid{number}", "ns"), labels={"a": "b"}),
        "fast",
        state,
        1000 + number,
        f"/pods/{number}",
        ips=("10.0.0.2",),
    )


def container_facts(number=1, sandbox=1, state="created"):
    return ContainerFacts(
        ContainerId(f"{number:064x}"),
        SandboxId(f"{sandbox:064x}"),
        ContainerConfig(ContainerMetadata(f"box{number}"), ImageSpec("localhost/demo")),
        state,
        1000 + number,
        f"/pods/{sandbox}/{number}",
        config=CONFIG,
    )


CONFIG = OciConfig(Process(args=("/bin/true",), env=("PATH=/bin", "KEEP=1")))


class FakeServices:
    """Implements ObserverServices over two dictionaries."""

    hook_timeout_s = 5.0

    def __init__(self):
        self.sandboxes_by_id = {}
        self.containers_by_id = {}
        self.updates = []
        self.evicted = []
        self.reported = {}
        self.on_update = None

    def add(self, *facts):
        for each in facts:
            kind = self.sandboxes_by_id if isinstance(each, SandboxFacts) else self.containers_by_id
            kind[each.id] = each

    def snapshot(self):
        return Snapshot(
            tuple(s for s in self.sandboxes_by_id.values() if s.state != "creating"),
            tuple(c for c in self.containers_by_id.values() if c.state != "creating"),
        )

    def sandbox(self, sandbox_id, /):
        return self.sandboxes_by_id.get(sandbox_id)

    def container(self, container_id, /):
        return self.containers_by_id.get(container_id)

    def report(self, facts, /):
        self.reported = facts

    async def cdi_devices(self, config, names, /):
        if names != ["a/b=c"]:
            raise NotFound(f"no CDI device {names[0]!r}")
        return replace(config, hostname="with a/b=c")

    async def update(self, container_id, resources, /):
        if container_id not in self.containers_by_id:
            raise NotFound(f"no container {container_id}")
        self.updates.append((container_id, resources))
        if self.on_update is not None:
            await self.on_update(container_id, resources)

    async def evict(self, sandbox_id, reason, /):
        self.evicted.append((sandbox_id, reason))

    def plugins(self):
        return {each["name"]: each for each in self.reported["plugins"]}


class Recorder:
    """A plugin that notes all calls; `answers` maps a method to what answers it."""

    def __init__(self, name, index, methods, answers):
        self.calls = []
        self.answers = answers
        self.stub = PluginStub(name, index, {each: self._handler(each) for each in methods})

    def _handler(self, method):
        async def handle(request):
            self.calls.append((method, request))
            answer = self.answers.get(method)
            return await answer(request) if answer is not None else None

        return handle

    def methods(self):
        return [method for method, _request in self.calls]

    def of(self, method):
        return [request for each, request in self.calls if each == method]


EVERYTHING = [
    method.name
    for method in api.DESCRIPTOR.services_by_name["Plugin"].methods
    if method.name not in {"Configure", "StateChange"}
]


class Lab:
    """An open plugin with its services and a socket to connect to."""

    def __init__(self, plugin, services, path):
        self.plugin = plugin
        self.services = services
        self.path = path
        self.recorders = []

    async def connect(self, name="logger", index="10", *, methods=None, wait=True, **answers):
        made = Recorder(name, index, EVERYTHING if methods is None else methods, answers)
        self.recorders.append(made)
        await made.stub.start(str(self.path))
        if wait:
            await self.until(lambda: self.state_of(f"{index}-{name}") == "connected")
        return made

    def state_of(self, title):
        return self.services.plugins().get(title, {}).get("state", "")

    async def until(self, question, what="it"):
        async with asyncio.timeout(LIMIT_S):
            while not question():
                await asyncio.sleep(0.005)

    async def create(self, facts, config=CONFIG):
        """What core does: the hook while it is being made, then the record, then the news."""
        self.services.add(replace(facts, state="creating", config=None))
        adjusted = await self.plugin.polypod_adjust_container(
            facts.id,
            facts.sandbox_id,
            SandboxConfig(PodMetadata("p", "u", "n")),
            facts.request,
            config,
        )
        made = replace(facts, state="created", config=adjusted or config)
        self.services.add(made)
        self.plugin.polypod_container_created(made)
        return made.config


async def close_all(open_lab):
    for lab, observer in open_lab.opened:
        for recorder in lab.recorders:
            await recorder.stub.stop()
        await observer.close()
    open_lab.opened.clear()
