"""Name what fails: every step of an operation is timed, and its errors say the id and the step."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from polypod.lifecycle.clock import Clock, within
from polypod.lifecycle.explain import Explain
from polypod.plugin.errors import BackendError, PolypodError

T = TypeVar("T")


@contextmanager
def step(explain: Explain, what: str, name: str) -> Iterator[None]:
    """Time a step of an operation and name it in whatever error leaves it.

    Args:
        explain: the object's record.
        what: kind and id, ``sandbox 12ab…``.
        name: the step, as a person would call it.

    Raises:
        PolypodError: the same class as the cause.
        OSError: the same errno as the cause.
        BackendError: for any other cause.
    """
    try:
        with explain.stage(name):
            yield
    except PolypodError as error:
        raise type(error)(f"{what}: {name}: {error}") from error
    except OSError as error:
        text = error.strerror or str(error)
        raise OSError(error.errno, f"{what}: {name}: {text}", error.filename) from error
    except Exception as error:  # a backend may raise anything; the caller must see where
        raise BackendError(f"{what}: {name}: {type(error).__name__}: {error}") from error


async def bounded(
    clock: Clock, seconds: float, what: str, explain: Explain, work: Coroutine[Any, Any, T]
) -> T:
    """Give a whole operation a limit of our own, whatever the client's was (A15).

    Raises:
        BackendError: the time ran out; the work was cancelled and has undone itself.
    """
    try:
        return await within(clock, seconds, work)
    except TimeoutError as error:
        raise BackendError(
            f"{what}: given up after {seconds:g} s in step {explain.reached!r}; nothing was kept, "
            "`polypod explain` on a similar object shows where time goes"
        ) from error
