"""The relay is killed, at the worst moments: the machine goes on, no line is lost, and every code is exact."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from conformance import pods as pods_of_tests
from conformance.pods import eventually, log_text

from polypod.client import pb
from polypod.lifecycle.views import StreamChoice
from polypod.plan import channel
from polypod.streaming import dialing
from polypod_vm_child.streams import _WRITE_BYTES

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_busybox]
LINES = 20_000
COUNT = (
    "n=0; while [ $n -lt 200 ]; do seq $((n*100+1)) $((n*100+100)); n=$((n+1)); usleep 10000; done"
)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A guest that is emulated on a busy host is slow; nothing is measured against this."""
    monkeypatch.setattr(pods_of_tests, "LIMIT_S", 100.0)


@pytest.fixture(autouse=True)
def nothing_left(server):
    """Compare before and after, as the fixture of this name does elsewhere; the daemon may be another one."""
    before = server.residue()
    yield
    assert server.settled(before, ignore="processes") == {}


def relays(server) -> list[int]:
    found = []
    for pid in server.pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if b"polypod_vm_child.relay" in words and state != "Z":
            found.append(pid)
    return found


async def kill_relay(server) -> int:
    """Kill it as soon as there is one, and return who it was."""

    async def there():
        return relays(server)

    (pid,) = await eventually(there, "there is a relay")
    os.kill(pid, signal.SIGKILL)
    return pid


def assert_whole(text: str, lines: int) -> None:
    """Every line once, in order; at most one write may stand there twice, where somebody was killed."""
    wanted = "".join(f"{number}\n" for number in range(1, lines + 1))
    twice = len(text) - len(wanted)
    assert 0 <= twice <= _WRITE_BYTES, f"{len(text)} bytes instead of {len(wanted)}"
    pairs = enumerate(zip(text, wanted, strict=False))
    same = next((where for where, (one, other) in pairs if one != other), len(wanted))
    is_whole = text == wanted[:same] + wanted[same - twice :]
    assert is_whole, f"at byte {same}: {text[same - 50 : same + 50]!r}"


async def test_killed_in_the_middle_of_many_lines(pods, server):
    pod = await pods.run("lines")
    box = await pod.start(f"{COUNT}; exit 5")
    await pod.said(box, "100\n")
    killed = set()
    for number in range(1, 4):
        killed.add(await kill_relay(server))
        await pod.said(box, f"{number * 4000}\n")
    assert len(killed) == 3
    ended = await pod.ended(box)
    assert ended.code == 5
    assert_whole(ended.out, LINES)
    assert (await pod.status()).state == pb.SANDBOX_READY


async def test_killed_while_nobody_reads_and_much_is_under_way(pods, server):
    """What fills windows and pipes is sent once more as far as it was not written."""
    pod = await pods.run("flood")
    box = await pod.start("seq 1 200000; echo on-stderr >&2; exit 3")
    for _ in range(4):
        await kill_relay(server)
        await asyncio.sleep(0.2)
    ended = await pod.ended(box)
    assert ended.code == 3
    assert_whole(ended.out, 200_000)
    assert ended.err == "on-stderr\n"


async def test_killed_during_an_exec(pods, cri, server):
    pod = await pods.run("exec")
    box = await pod.start()
    running = [
        asyncio.ensure_future(
            cri.exec_sync(
                box, ["sh", "-c", f"echo begin; sleep 1; echo {number}; exit {number}"], 60
            )
        )
        for number in (7, 8)
    ]
    await asyncio.sleep(0.3)
    await kill_relay(server)
    # Asked while there is no relay: it waits for the next one, and is done once.
    said = await pod.sh(box, "echo x >> /count; cat /count")
    assert said == "x\n"
    for number, answer in zip((7, 8), await asyncio.gather(*running), strict=True):
        assert answer.exit_code == number
        assert answer.stdout == f"begin\n{number}\n".encode()


async def test_requests_that_are_under_way_are_done_once(pods, server):
    pod = await pods.run("once")
    box = await pod.start()
    asked = [asyncio.ensure_future(pod.sh(box, "echo x >> /count")) for _ in range(6)]
    for _ in range(3):
        await asyncio.sleep(0.1)
        await kill_relay(server)
    await asyncio.gather(*asked)
    assert await pod.sh(box, "wc -l < /count") == "6\n"


async def test_killed_at_exit(pods, server):
    pod = await pods.run("exit")
    boxes = [
        await pod.start(f"sleep 1.{number}; echo last; exit {number}", name=f"box-{number}")
        for number in (1, 4, 7)
    ]
    for _ in range(6):
        await kill_relay(server)
        await asyncio.sleep(0.25)
    for number, box in zip((1, 4, 7), boxes, strict=True):
        ended = await pod.ended(box)
        assert (ended.code, ended.out) == (number, "last\n")


async def test_stdin_of_a_container_goes_on(pods, cri, server):
    pod = await pods.run("typed")
    box = await pod.start("cat; exit 4", stdin=True, stdin_once=True)
    url = await cri.attach_url(box, stdin=True, stdout=True)
    choice = StreamChoice(stdin=True, stdout=True, stderr=False, tty=False)
    async with dialing.command(url, choice) as client:
        for number in range(60):
            lines = range(1000 * number + 1, 1000 * number + 1001)
            await client.write("".join(f"{line}\n" for line in lines).encode())
            if number in (20, 40):
                await kill_relay(server)
                await pod.said(box, f"{1000 * number}\n")
        client.end_stdin()
        ended = await pod.ended(box)
    assert ended.code == 4
    assert_whole(ended.out, 60_000)


async def test_killed_together_with_the_daemon(pods, cri, server):
    """Without a daemon nobody starts another relay: what is written waits in the guest."""
    pod = await pods.run("both")
    box = await pod.start(f"{COUNT}; exit 6")
    path = Path((await cri.container_status(box)).status.log_path)
    await pod.said(box, "1000\n")
    server.kill()
    await kill_relay(server)
    await asyncio.sleep(0.5)
    stands = log_text(path)
    await asyncio.sleep(0.5)
    assert log_text(path) == stands
    server.launch()
    await server.ready()
    ended = await pod.ended(box)
    assert ended.code == 6
    assert_whole(ended.out, LINES)


async def test_nothing_is_left_with_the_keeper(pods, server):
    pod = await pods.run("left")
    await pod.run("echo hello")
    await kill_relay(server)
    box = await pod.start(name="other")
    await pod.sh(box, "true")
    held = keeper_descriptors(server)
    await pods.remove_all()

    async def fewer():
        return keeper_descriptors(server) < held

    await eventually(fewer, "the keeper has let go")
    assert not [name for name in keys(server) if name.startswith("relay/")]


def keeper_descriptors(server) -> int:
    return sum(1 for _ in Path(f"/proc/{keeper(server)}/fd").iterdir())


def keeper(server) -> int:
    for pid in server.pids():
        if Path(f"/proc/{pid}/comm").read_text() == "polypod-keeper\n":
            return pid
    raise AssertionError("there is no keeper")


def keys(server) -> list[str]:
    with channel.connect(str(server.state / "keeper.sock")) as sock:
        channel.send(sock, {"id": 1, "op": "get", "prefix": "relay/"})
        message, fds = channel.receive(sock)
        channel.close_all(fds)
        return [row["key"] for row in message["ok"]["entries"]]
