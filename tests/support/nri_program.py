"""An NRI plugin as a program: it writes down what it is told, and does what its configuration says.

A server starts it from its directory of plugins and configures it; by hand it takes two words, the socket
and a file with the configuration. That is JSON: ``log``, a file for one line per call; ``adjust``, a
ContainerAdjustment for every container; ``shares``, cpu shares that it asks for once a container runs;
``evict``, whether it asks for an eviction then; ``hang``, ``die`` and ``refuse``, methods at which it does.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

from google.protobuf import json_format

from polypod_nri.connection import Code, Refused
from polypod_nri.stub import EVENTS, PluginStub
from polypod_nri.wire import api


class Program:
    def __init__(self, config):
        self.config = config
        self.asked = set()
        handlers = {name: self._handler(name) for name in (*EVENTS, "Synchronize", "Configure")}
        self.stub = PluginStub("program", "50", handlers)

    def _handler(self, method):
        async def handle(request):
            if method == "Configure" and request.config:
                self.config = json.loads(request.config)
            self._note(method, request)
            if method in self.config.get("hang", ()):
                await asyncio.sleep(1000)
            if method in self.config.get("die", ()):
                os._exit(7)
            if method in self.config.get("refuse", ()):
                raise Refused(Code.FAILED_PRECONDITION, "the program says no")
            return await getattr(self, method.lower(), self.nothing)(request)

        return handle

    def _note(self, method, request):
        with Path(self.config["log"]).open("a") as log:
            facts = json_format.MessageToDict(request, preserving_proto_field_name=True)
            log.write(json.dumps({"method": method, **facts}) + "\n")

    async def nothing(self, _request):
        return None

    async def createcontainer(self, _request):
        answer = api.CreateContainerResponse()
        return json_format.ParseDict({"adjust": self.config.get("adjust", {})}, answer)

    async def poststartcontainer(self, request):
        if self.config.get("shares") or self.config.get("evict"):
            task = asyncio.create_task(self._ask(request.container.id))
            self.asked.add(task)

    async def _ask(self, container_id):
        update = api.ContainerUpdate(container_id=container_id)
        update.linux.resources.cpu.shares.value = self.config.get("shares", 0)
        eviction = api.ContainerEviction(container_id=container_id, reason="the program wants it")
        await self.stub.update(
            [update] if self.config.get("shares") else [],
            [eviction] if self.config.get("evict") else [],
        )


if __name__ == "__main__":
    words = sys.argv[1:]
    program = Program(json.loads(Path(words[1]).read_text()) if words else {})
    asyncio.run(program.stub.run(*words[:1]))
