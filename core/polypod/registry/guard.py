"""Calls into code that others wrote: under a deadline, and with one kind of error for every mishap.

A plain function runs in a thread of its own while somebody waits for it, so that one which never
returns costs a thread and not the server. The threads are daemons: nothing at exit joins them. What
cannot be contained inside one process is ``os._exit`` and a crash of the interpreter.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from polypod.plugin.errors import FailedPrecondition

T = TypeVar("T")


class PluginFault(Exception):
    """A plugin raised, hung or answered nonsense; the text does not name it, the catcher does."""


def in_thread(call: Callable[[], T], name: str) -> Future[T]:
    """Start a call in a daemon thread of its own and return what will come of it."""
    outcome: Future[T] = Future()
    # From here on nobody can cancel it: the thread may always deliver.
    outcome.set_running_or_notify_cancel()
    run = contextvars.copy_context().run
    thread = threading.Thread(
        target=lambda: _deliver(lambda: run(call), outcome), name=f"plugin {name}", daemon=True
    )
    thread.start()
    return outcome


def _deliver(call: Callable[[], T], outcome: Future[T]) -> None:
    try:
        outcome.set_result(call())
    except FailedPrecondition as refusal:
        outcome.set_exception(refusal)
    except BaseException as error:  # noqa: BLE001 - a plugin may raise anything, SystemExit too
        outcome.set_exception(_fault(error))


def _fault(error: BaseException) -> PluginFault:
    if isinstance(error, PluginFault):
        return error
    fault = PluginFault(f"raised {type(error).__name__}: {error}")
    fault.__cause__ = error
    return fault


def bounded(call: Callable[[], T], timeout_s: float, name: str) -> T:
    """Return what a call returns; the calling thread waits. For the start, before there is a loop.

    Raises:
        PluginFault: it raised, or did not return in time.
        FailedPrecondition: it said so.
    """
    outcome = in_thread(call, name)
    try:
        return outcome.result(timeout_s)
    except TimeoutError:
        # No TimeoutError of the call itself gets here: `_deliver` made a fault of it.
        raise PluginFault(f"did not return within {timeout_s:g} s") from None


async def bounded_async(call: Callable[[], object], timeout_s: float, name: str) -> object:
    """Return what a call returns, awaited if it is awaitable.

    A coroutine function runs in the loop, where a deadline can stop it at an ``await`` only; one that
    blocked the loop longer than the deadline is a fault all the same.

    Raises:
        PluginFault: it raised, or did not return in time.
        FailedPrecondition: it said so.
    """
    began = time.monotonic()
    task = asyncio.ensure_future(_answer(call, name))
    try:
        await asyncio.wait({task}, timeout=timeout_s)
    finally:
        if not task.done():  # not awaited: it may refuse to end
            task.cancel()
            task.add_done_callback(_drop)
    if not task.done() or time.monotonic() - began > timeout_s:
        raise PluginFault(f"did not return within {timeout_s:g} s")
    if task.cancelled():
        raise PluginFault("cancelled itself")
    return task.result()


async def _answer(call: Callable[[], object], name: str) -> object:
    try:
        if inspect.iscoroutinefunction(inspect.unwrap(call)):
            answer = call()
        else:
            answer = await asyncio.wrap_future(in_thread(call, name))
        return await answer if inspect.isawaitable(answer) else answer
    except (FailedPrecondition, asyncio.CancelledError):
        raise
    except BaseException as error:  # a SystemExit here would end the event loop
        raise _fault(error) from error


def _drop(task: asyncio.Future[object]) -> None:
    """Look at the outcome of a call nobody waits for any more, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()


def measured(call: Callable[[], T], timeout_s: float) -> T:
    """Return what a short synchronous call returns; it runs here, so a slow one is only found out.

    Raises:
        PluginFault: it raised, or took longer than ``timeout_s``.
        FailedPrecondition: it said so.
    """
    began = time.monotonic()
    try:
        answer = call()
    except FailedPrecondition:
        raise
    except (Exception, SystemExit) as error:
        raise _fault(error) from error
    took_s = time.monotonic() - began
    if took_s > timeout_s:
        raise PluginFault(f"took {took_s:.3g} s of the server's time; {timeout_s:g} s are allowed")
    return answer
