"""Plugins that refuse, hang, send garbage or end: closed and named; no pod waits longer than the time limit."""

from __future__ import annotations

import asyncio
import socket
import struct
import time

import pytest
from support.nri import CONFIG, close_all, container_facts, sandbox_facts

from polypod.plugin import FailedPrecondition, InvalidArgument
from polypod_nri import wire
from polypod_nri.connection import Code, Refused
from polypod_nri.framing import Frame, FrameType, encode
from polypod_nri.peer import RUNTIME
from polypod_nri.wire import api


class Raw:
    """A plugin of bytes: it says what it is told to say."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(path))
        self.sock.setblocking(False)

    def register(self, name="raw", index="30", stream=1):
        request = api.RegisterPluginRequest(plugin_name=name, plugin_idx=index)
        self.ask("RegisterPlugin", request, stream)

    def ask(self, method, request, stream=1, service=RUNTIME):
        data = wire.question(service, method, request.SerializeToString())
        self.send(encode(2, Frame(stream, FrameType.REQUEST, data)))

    def send(self, data):
        self.sock.sendall(data)

    async def closed(self):
        loop = asyncio.get_running_loop()
        try:
            while await loop.sock_recv(self.sock, 65536):
                pass
        except ConnectionError:
            pass
        finally:
            self.sock.close()


def reason(lab, title):
    return lab.services.plugins()[title]["reason"]


@pytest.fixture
async def hasty(open_lab):
    made = await open_lab(request_timeout_s=0.2, registration_timeout_s=0.2)
    yield made
    await close_all(open_lab)


async def forever(_request):
    await asyncio.sleep(1000)


METHODS = {
    "RunPodSandbox": lambda lab: lab.plugin.polypod_before_sandbox_ready(sandbox_facts()),
    "CreateContainer": lambda lab: lab.create(container_facts()),
    "ValidateContainerAdjustment": lambda lab: lab.create(container_facts()),
    "StartContainer": lambda lab: lab.plugin.polypod_before_container_start(container_facts()),
    "StopPodSandbox": lambda lab: lab.plugin.polypod_before_sandbox_stop(sandbox_facts()),
}


@pytest.mark.parametrize("method", METHODS)
async def test_one_that_hangs_is_closed_and_the_call_goes_on(hasty, method):
    await hasty.connect("hangs", "10", **{method: forever})
    other = await hasty.connect("fine", "20")
    await METHODS[method](hasty)
    assert reason(hasty, "10-hangs") == f"it did not answer {method} within 0.2 s"
    assert hasty.state_of("10-hangs") == "closed"
    assert method in other.methods()


async def test_pods_that_wait_behind_a_hanging_one_wait_once(hasty):
    await hasty.connect("hangs", "10", RunPodSandbox=forever)
    pods = [sandbox_facts(number) for number in range(20)]
    began = time.monotonic()
    await asyncio.gather(*(hasty.plugin.polypod_before_sandbox_ready(each) for each in pods))
    # 20 time limits one after the other would be 4 s: far more than a busy host adds to one of 0.2 s.
    assert time.monotonic() - began < 3


async def test_one_that_hangs_in_synchronize_is_closed(hasty):
    await hasty.connect("hangs", "10", wait=False, Synchronize=forever)
    await hasty.until(lambda: hasty.state_of("10-hangs") == "synchronizing")
    await hasty.create(container_facts())
    assert reason(hasty, "10-hangs") == "it did not answer Synchronize within 0.2 s"


async def test_one_that_never_registers_is_closed(hasty):
    raw = Raw(hasty.path)
    await raw.closed()
    await hasty.until(lambda: hasty.state_of("??-unregistered") == "closed")
    assert reason(hasty, "??-unregistered") == "it did not register within 0.2 s"


async def test_one_that_never_answers_configure_is_closed(hasty):
    raw = Raw(hasty.path)
    raw.register()
    await raw.closed()
    await hasty.until(lambda: hasty.state_of("30-raw") == "closed")
    assert reason(hasty, "30-raw") == "it did not answer Configure within 0.2 s"


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">II", 2, 1 << 30),
        encode(2, Frame(2, FrameType.REQUEST, b"")),
        encode(2, Frame(1, FrameType.DATA, b"")),
        encode(1, Frame(1, FrameType.REQUEST, b"")),
    ],
    ids=["http", "endless", "even-stream", "data", "request-where-an-answer-is-due"],
)
async def test_one_that_sends_garbage_is_closed(lab, garbage):
    raw = Raw(lab.path)
    raw.register()
    await lab.until(lambda: lab.state_of("30-raw") != "")
    raw.send(garbage)
    await raw.closed()
    await lab.until(lambda: lab.state_of("30-raw") == "closed")
    assert "it does not speak ttrpc" in reason(lab, "30-raw")


async def test_an_answer_that_is_no_message_closes_it(lab):
    raw = Raw(lab.path)
    raw.register()
    await lab.until(lambda: lab.state_of("30-raw") != "")
    raw.send(encode(1, Frame(1, FrameType.RESPONSE, wire.answer(b"\xff\xff\xff"))))
    await raw.closed()
    await lab.until(lambda: lab.state_of("30-raw") == "closed")
    assert "Configure: no ConfigureResponse" in reason(lab, "30-raw")


async def test_one_that_wants_unknown_events_is_closed(lab):
    raw = Raw(lab.path)
    raw.register()
    await lab.until(lambda: lab.state_of("30-raw") != "")
    answer = api.ConfigureResponse(events=1 << 20).SerializeToString()
    raw.send(encode(1, Frame(1, FrameType.RESPONSE, wire.answer(answer))))
    await raw.closed()
    assert "it wants events that there are not: 0x100000" in reason(lab, "30-raw")


async def test_a_flood_of_calls_closes_it(lab, services):
    services.add(container_facts())
    blocked = asyncio.Event()

    async def wait(_container_id, _resources):
        await blocked.wait()

    services.on_update = wait
    plugin = await lab.connect()
    update = api.ContainerUpdate(container_id=container_facts().id)
    calls = [asyncio.create_task(plugin.stub.update([update])) for _ in range(100)]
    await lab.until(lambda: lab.state_of("10-logger") == "closed")
    assert "64 calls at once" in reason(lab, "10-logger")
    blocked.set()
    await asyncio.gather(*calls, return_exceptions=True)


@pytest.mark.parametrize(("index", "name"), [("1", "a"), ("xx", "a"), ("10", ""), ("10", "a/b")])
async def test_names_that_are_none_are_refused(lab, index, name):
    raw = Raw(lab.path)
    raw.register(name, index)
    await raw.closed()
    await lab.until(lambda: lab.state_of("??-unregistered") == "closed")
    assert "two digits" in reason(lab, "??-unregistered")


async def test_one_that_ends_is_named_and_missed_by_nobody(lab):
    plugin = await lab.connect()
    await plugin.stub.stop()
    await lab.until(lambda: lab.state_of("10-logger") == "closed")
    assert reason(lab, "10-logger") == "it closed the connection"
    assert await lab.create(container_facts()) == CONFIG


async def test_one_that_ends_in_a_call_is_missed_by_nobody(lab):
    async def leave(_request):
        await plugin.stub.stop()

    plugin = await lab.connect(CreateContainer=leave)
    assert await lab.create(container_facts()) == CONFIG
    assert lab.state_of("10-logger") == "closed"


async def test_it_may_come_back(lab):
    first = await lab.connect()
    await first.stub.stop()
    await lab.until(lambda: lab.state_of("10-logger") == "closed")
    second = await lab.connect()
    await lab.create(container_facts())
    assert "CreateContainer" in second.methods()


async def refuse(_request):
    raise Refused(Code.FAILED_PRECONDITION, "not today")


@pytest.mark.parametrize("method", METHODS)
async def test_a_refusal_is_told_and_the_plugin_stays(lab, method):
    await lab.connect("strict", "10", **{method: refuse})
    with pytest.raises(FailedPrecondition, match=f"NRI plugin 10-strict: {method}: not today"):
        await METHODS[method](lab)
    assert lab.state_of("10-strict") == "connected"


async def test_all_are_told_of_a_stop_though_one_refuses_it(lab):
    first = await lab.connect("strict", "10", StopPodSandbox=refuse)
    second = await lab.connect("other", "20")
    with pytest.raises(FailedPrecondition, match="10-strict"):
        await lab.plugin.polypod_before_sandbox_stop(sandbox_facts())
    assert first.of("StopPodSandbox")
    assert second.of("StopPodSandbox")


async def test_a_refused_synchronize_closes_it(lab):
    await lab.connect("strict", "10", wait=False, Synchronize=refuse)
    await lab.until(lambda: lab.state_of("10-strict") == "closed")
    assert reason(lab, "10-strict") == "it refused Synchronize: not today"


async def test_a_required_plugin_must_be_there(open_lab):
    lab = await open_lab(required=["guard"])
    with pytest.raises(FailedPrecondition, match=r"NRI plugin 'guard' is required .*not connected"):
        await lab.create(container_facts())
    guard = await lab.connect("guard", "10")
    await lab.create(container_facts(2))
    await guard.stub.stop()
    await lab.until(lambda: lab.state_of("10-guard") == "closed")
    with pytest.raises(FailedPrecondition, match="'guard'"):
        await lab.create(container_facts(3))
    await close_all(open_lab)


async def test_time_that_core_gives_is_shared_by_all(open_lab, services):
    services.hook_timeout_s = 0.4
    lab = await open_lab(request_timeout_s=30)
    await lab.connect("hangs", "10", RunPodSandbox=forever)
    await lab.plugin.polypod_before_sandbox_ready(sandbox_facts())
    assert "plugins.hook_timeout_s" in reason(lab, "10-hangs")
    await close_all(open_lab)


async def test_a_second_server_does_not_take_the_socket_of_the_first(lab, open_lab):
    with pytest.raises(FailedPrecondition, match="another server listens there"):
        await open_lab()


async def test_a_socket_that_nobody_serves_any_more_is_replaced(open_lab):
    first = await open_lab()
    left = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    await close_all(open_lab)
    left.bind(str(first.path))
    left.close()
    second = await open_lab()
    await second.connect()
    await close_all(open_lab)


async def test_a_wrong_setting_is_told_when_it_is_opened(open_lab):
    with pytest.raises(InvalidArgument, match="did you mean 'socket'"):
        await open_lab(sokcet="/x")
