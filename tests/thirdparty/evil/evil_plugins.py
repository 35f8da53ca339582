"""Plugins that do everything wrong, one class per way. Nothing of the server may suffer from them."""

from __future__ import annotations

import asyncio
import sys
import time

from polypod.plugin import (
    Hooks,
    NetworkType,
    OciConfig,
    RuntimeType,
    hookimpl,
    override,
)


async def _nothing(_context):
    raise NotImplementedError


def runtime_type(name="mine", **changes):
    facts = {"name": name, "summary": "for tests", "open": _nothing, "rootfs_forms": ()} | changes
    return RuntimeType(**facts)


class Offers(Hooks):
    """Answers whatever it was given."""

    def __init__(self, answer):
        self.answer = answer

    @override
    @hookimpl
    def polypod_runtime_types(self):
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer() if callable(self.answer) else self.answer


class OffersNetwork(Hooks):
    @override
    @hookimpl
    def polypod_network_types(self):
        return [NetworkType("net", "for tests", _nothing)]


class Adjusts(Hooks):
    """Adjusts with a function that the test gives."""

    def __init__(self, function):
        self.function = function

    @override
    @hookimpl
    def polypod_adjust_container(self, container_id, sandbox, request, config):
        return self.function(config)


class AdjustsAsync(Hooks):
    """Adjusts with a coroutine function that the test gives."""

    def __init__(self, function):
        self.function = function

    @override
    @hookimpl
    async def polypod_adjust_container(self, container_id, sandbox, request, config):
        return await self.function(config)


class Chooses(Hooks):
    def __init__(self, function):
        self.function = function

    @override
    @hookimpl
    def polypod_choose_handler(self, request):
        return self.function(request)


class Observes(Hooks):
    """Calls a function with the name of each observe hook and its facts."""

    def __init__(self, function):
        self.function = function

    @override
    @hookimpl
    def polypod_sandbox_ready(self, sandbox_id, sandbox, handler):
        self.function("sandbox_ready", sandbox_id, sandbox, handler)

    @override
    @hookimpl
    def polypod_sandbox_stopped(self, sandbox_id):
        self.function("sandbox_stopped", sandbox_id)

    @override
    @hookimpl
    def polypod_sandbox_removed(self, sandbox_id):
        self.function("sandbox_removed", sandbox_id)

    @override
    @hookimpl
    def polypod_container_started(self, container_id, pid):
        self.function("container_started", container_id, pid)

    @override
    @hookimpl
    def polypod_container_exited(self, container_id, status):
        self.function("container_exited", container_id, status)

    @override
    @hookimpl
    def polypod_container_removed(self, container_id):
        self.function("container_removed", container_id)


class Unmarked(Hooks):
    """Overrides a hook and forgets the mark: it would never be called."""

    @override
    def polypod_sandbox_ready(self, sandbox_id, sandbox, handler):
        raise AssertionError


class Misspelt(Hooks):
    @hookimpl
    def polypod_sandbox_redy(self, sandbox_id):
        raise AssertionError


class WrongArguments(Hooks):
    @hookimpl
    def polypod_sandbox_stopped(self, sandbox_id, moon):
        raise AssertionError


def raises(_config):
    raise RuntimeError("broken inside")


def exits(_config):
    sys.exit(3)


def hangs(_config):
    time.sleep(3)  # a daemon thread: nobody waits for it at the end


async def exits_async(_config):
    sys.exit(3)


async def hangs_async(_config):
    await asyncio.Event().wait()


async def refuses_to_end(_config):
    """Swallows its cancellation, for a while."""
    for _ in range(20):
        try:
            await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            continue


async def cancels_itself(_config):
    raise asyncio.CancelledError


def answers_nonsense(_config):
    return "no config at all"


def answers_hollow(_config):
    return OciConfig(process=None)
