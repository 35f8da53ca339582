"""What the daemon remembers of ends."""

import asyncio

from polypod.plugin.services import ExitStatus, ProcessExit
from polypod.processes.exits import Exits

DONE = ExitStatus(3, 0, 1)


async def take(listening, count):
    return [await anext(listening) for _ in range(count)]


async def test_an_end_is_told_once_to_everybody_who_listens():
    exits = Exits()
    exits.know("a")
    first, second = exits.listen(), exits.listen()
    waiting = [asyncio.create_task(take(each, 1)) for each in (first, second)]
    waiter = exits.waiter("a")
    await asyncio.sleep(0)
    exits.note("a", DONE)
    exits.note("a", ExitStatus(4))
    assert await asyncio.gather(*waiting) == [[ProcessExit("a", DONE)]] * 2
    assert await waiter == DONE
    assert exits.status("a") == DONE
    await first.aclose()
    await second.aclose()


async def test_who_listens_later_is_told_what_is_not_forgotten():
    exits = Exits()
    for name in ("a", "b"):
        exits.know(name)
        exits.note(name, DONE)
    exits.forget("a")
    listening = exits.listen()
    assert await take(listening, 1) == [ProcessExit("b", DONE)]
    await listening.aclose()


async def test_the_end_of_a_launch_is_told_when_it_has_succeeded():
    exits = Exits()
    exits.begin("a")
    exits.note("a", DONE)
    waiter = exits.waiter("a")
    assert not waiter.done()
    exits.succeed("a")
    assert await waiter == DONE


async def test_the_end_of_a_launch_that_failed_is_never_told():
    exits = Exits()
    exits.begin("a")
    exits.note("a", DONE)
    exits.forget("a")
    exits.begin("a")
    exits.succeed("a")
    assert exits.status("a") is None
    assert not exits.waiter("a").done()


async def test_news_of_the_unknown_is_dropped():
    exits = Exits()
    exits.note("a", DONE)
    assert exits.status("a") is None
    assert exits.waiter("a") is None


async def test_who_waits_for_what_is_forgotten_is_told_that_nobody_knows():
    exits = Exits()
    exits.know("a")
    waiter = exits.waiter("a")
    exits.forget("a")
    assert (await waiter).code is None


async def test_close_ends_every_listener():
    exits = Exits()
    listening = exits.listen()
    waiting = asyncio.create_task(anext(listening, None))
    await asyncio.sleep(0)
    exits.close()
    assert await waiting is None
