"""The other side: what an NRI plugin that is written in Python needs.

::

    async def create(request: api.CreateContainerRequest) -> api.CreateContainerResponse:
        answer = api.CreateContainerResponse()
        answer.adjust.env.add(key="NODE", value="7")
        return answer

    asyncio.run(PluginStub("node-env", "10", {"CreateContainer": create}).run())

Nothing here is polypod's own: such a plugin runs with every server that speaks NRI.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from polypod_nri import wire
from polypod_nri.connection import Code, Connection, Refused
from polypod_nri.framing import RUNTIME_CONNECTION
from polypod_nri.peer import EVENTS, NRI_VERSION, PLUGIN, RUNTIME
from polypod_nri.wire import api

DEFAULT_SOCKET = "/var/run/nri/nri.sock"
_TIMEOUT_S = 10.0

Handler = Callable[[Any], Awaitable[Any]]
"""A request of the method's kind → its response, or None for an empty one. Raises `Refused`."""


def _kinds() -> dict[str, tuple[type[wire.Message], type[wire.Message]]]:
    service = api.DESCRIPTOR.services_by_name["Plugin"]
    return {
        method.name: (getattr(api, method.input_type.name), getattr(api, method.output_type.name))
        for method in service.methods
    }


class PluginStub:
    """One plugin: registers, answers what it is asked, and may ask for updates."""

    def __init__(self, name: str, index: str, handlers: Mapping[str, Handler]) -> None:
        """Prepare a plugin.

        Args:
            name: of letters, digits and ``_.+-``. A server that starts the plugin tells another one.
            index: two digits: plugins are called in this order.
            handlers: method → what answers it. Without ``Configure`` it subscribes to what it handles.
        """
        self.name = os.environ.get("NRI_PLUGIN_NAME", name)
        self.index = os.environ.get("NRI_PLUGIN_IDX", index)
        self._handlers = handlers
        self._kinds = _kinds()
        self._over = asyncio.Event()
        self._connection: Connection | None = None
        self._parts = api.SynchronizeRequest()

    async def run(self, path: str = DEFAULT_SOCKET) -> None:
        """Connect, register, and answer until the connection ends."""
        await self.start(path)
        await self._over.wait()

    async def start(self, path: str = DEFAULT_SOCKET) -> None:
        """Connect to a socket, or take the one that the server left, and register.

        Raises:
            Refused: the server does not want the plugin.
        """
        descriptor = os.environ.get("NRI_PLUGIN_SOCKET")
        if descriptor:
            sock = socket.socket(fileno=int(descriptor))
            sock.setblocking(False)
        else:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, path)
        self._connection = Connection(
            sock, self._serve, lambda _reason: self._over.set(), ours=RUNTIME_CONNECTION
        )
        await self._connection.start()
        request = api.RegisterPluginRequest(
            plugin_name=self.name, plugin_idx=self.index, NRI_version=NRI_VERSION
        )
        await self._ask("RegisterPlugin", request)

    async def stop(self) -> None:
        """Leave."""
        if self._connection is not None:
            await self._connection.close("the plugin leaves")

    async def update(
        self,
        updates: Sequence[api.ContainerUpdate] = (),
        evictions: Sequence[api.ContainerEviction] = (),
    ) -> Sequence[api.ContainerUpdate]:
        """Ask for updates and evictions; return the updates that failed."""
        request = api.UpdateContainersRequest(update=updates, evict=evictions)
        answer = await self._ask("UpdateContainers", request)
        return wire.decode(api.UpdateContainersResponse, answer).failed

    async def _ask(self, method: str, request: wire.Message) -> bytes:
        if self._connection is None:
            raise RuntimeError("start the plugin first")
        return await self._connection.call(RUNTIME, method, request.SerializeToString(), _TIMEOUT_S)

    async def _serve(self, service: str, method: str, payload: bytes) -> bytes:
        if service != PLUGIN or method not in self._kinds:
            raise Refused(Code.UNIMPLEMENTED, f"there is no {service}/{method}")
        given, answered = self._kinds[method]
        answer = await self._handle(method, wire.decode(given, payload))
        return (answered() if answer is None else answer).SerializeToString()

    async def _handle(self, method: str, request: Any) -> wire.Message | None:  # noqa: ANN401
        handler = self._handlers.get(method)
        if method == "Configure" and handler is None:
            mask = sum(1 << (EVENTS[name] - 1) for name in self._handlers if name in EVENTS)
            return api.ConfigureResponse(events=mask)
        if method == "Synchronize":
            self._parts.MergeFrom(request)
            if request.more:
                return api.SynchronizeResponse(more=True)
            request, self._parts = self._parts, api.SynchronizeRequest()
            request.more = False
        if handler is not None:
            answer: wire.Message | None = await handler(request)
            return answer
        if method in {"Synchronize", "Shutdown"}:
            return None
        raise Refused(Code.UNIMPLEMENTED, f"{method} is not handled")
