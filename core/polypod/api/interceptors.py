"""The one interceptor: errors become status codes, each RPC becomes one log line.

Nobody else names gRPC codes. A client never sees a traceback; the log has it for what is our fault.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextvars import ContextVar
from itertools import count
from typing import Any, Protocol

import grpc
from grpc import StatusCode
from typing_extensions import override

from polypod.plugin import errors

log = logging.getLogger("polypod.api")

request_id: ContextVar[str] = ContextVar("request_id", default="-")
"""Number of the RPC being served; every log line below it can carry it."""
object_id: ContextVar[str] = ContextVar("object_id", default="-")
"""The sandbox or container that the RPC names."""

CODES: dict[type[errors.PolypodError], StatusCode] = {
    errors.InvalidArgument: StatusCode.INVALID_ARGUMENT,
    errors.NotFound: StatusCode.NOT_FOUND,
    errors.AlreadyExists: StatusCode.ALREADY_EXISTS,
    errors.FailedPrecondition: StatusCode.FAILED_PRECONDITION,
    errors.Unsupported: StatusCode.FAILED_PRECONDITION,
    errors.ResourceExhausted: StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: StatusCode.UNAVAILABLE,
    errors.Unimplemented: StatusCode.UNIMPLEMENTED,
    errors.DeadlineExceeded: StatusCode.DEADLINE_EXCEEDED,
    errors.BackendError: StatusCode.UNKNOWN,
}
ERRNO_CODES: dict[int, StatusCode] = dict.fromkeys(
    (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EAGAIN),
    StatusCode.RESOURCE_EXHAUSTED,
)
MAX_MESSAGE_LENGTH = 4096
"""gRPC sends the text in a header, and header lists are limited to 8 KiB by default."""


def code_and_text(error: BaseException) -> tuple[StatusCode, str]:
    """Return what a client is told of an error."""
    for kind in type(error).__mro__:
        if kind in CODES:
            return CODES[kind], str(error)
    if isinstance(error, OSError):
        return ERRNO_CODES.get(error.errno or 0, StatusCode.UNKNOWN), str(error)
    return StatusCode.INTERNAL, f"internal error ({type(error).__name__}); see the server's log"


class CallWatch(Protocol):
    """Is told of every call; ``polypod.telemetry`` measures."""

    def began(self, method: str, object_id: str, metadata: Sequence[tuple[str, str]], /) -> object:
        """A call begins, in a context of its own; what is returned comes back at its end."""
        ...

    def ended(self, began: object, method: str, code: str, seconds: float, /) -> None:
        """It has ended with this code."""
        ...


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler of the services."""

    def __init__(
        self, ready: Callable[[], bool] = lambda: True, watch: CallWatch | None = None
    ) -> None:
        """Refuse everything, Version too, until ``ready`` says yes; tell ``watch`` of all calls."""
        self._watch = watch
        self._ready = ready
        self._numbers = count(1)
        self._wrapped: dict[str, Any] = {}

    @override
    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the handler of a method, wrapped once and kept."""
        method = str(handler_call_details.method)
        known = self._wrapped.get(method)
        if known is not None:
            return known
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        name = method.rpartition("/")[2]
        if handler.response_streaming:
            wrapped = grpc.unary_stream_rpc_method_handler(
                self._stream(name, handler.unary_stream),
                handler.request_deserializer,
                handler.response_serializer,
            )
        else:
            wrapped = grpc.unary_unary_rpc_method_handler(
                self._unary(name, handler.unary_unary),
                handler.request_deserializer,
                _unless_bytes(handler.response_serializer),
            )
        self._wrapped[method] = wrapped
        return wrapped

    def _unary(self, name: str, serve: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        """Return a handler that serves, translates errors and logs."""

        async def call(request: Any, context: Any) -> Any:  # noqa: ANN401
            request_id.set(str(next(self._numbers)))
            object_id.set(_object_of(request))
            begin = time.perf_counter()
            code, text = StatusCode.OK, ""
            token = self._began(name, context)
            try:
                if not self._ready():
                    raise errors.Unavailable("the server is starting; try again in a moment")
                return await serve(request, context)
            except asyncio.CancelledError:
                code, text = StatusCode.CANCELLED, "the client hung up"
                raise
            except Exception as error:
                code, text = code_and_text(error)
                if code in {StatusCode.INTERNAL, StatusCode.UNKNOWN}:
                    log.exception("rpc=%s failed", name)
            finally:
                self._ended(token, name, code, text, time.perf_counter() - begin)
            return await context.abort(code, _printable(text))

        return call

    def _stream(
        self, name: str, serve: Callable[..., AsyncGenerator[Any]]
    ) -> Callable[..., AsyncIterator[Any]]:
        """Return what `_unary` does for a call whose answer is a stream."""

        async def call(request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ANN401
            request_id.set(str(next(self._numbers)))
            object_id.set(_object_of(request))
            begin = time.perf_counter()
            code, text = StatusCode.OK, ""
            token = self._began(name, context)
            try:
                if not self._ready():
                    raise errors.Unavailable("the server is starting; try again in a moment")
                async with contextlib.aclosing(serve(request, context)) as items:
                    async for item in items:
                        yield item
            except (asyncio.CancelledError, GeneratorExit):
                code, text = StatusCode.CANCELLED, "the client hung up"
                raise
            except Exception as error:
                code, text = code_and_text(error)
                if code in {StatusCode.INTERNAL, StatusCode.UNKNOWN}:
                    log.exception("rpc=%s failed", name)
            finally:
                self._ended(token, name, code, text, time.perf_counter() - begin)
            if code is not StatusCode.OK:
                await context.abort(code, _printable(text))

        return call

    def _began(self, name: str, context: Any) -> object:  # noqa: ANN401 - grpc.aio's
        if self._watch is None:
            return None
        metadata = [(key, str(value)) for key, value in context.invocation_metadata() or ()]
        return self._watch.began(name, object_id.get(), metadata)

    def _ended(self, token: object, name: str, code: StatusCode, text: str, seconds: float) -> None:
        if self._watch is not None:
            self._watch.ended(token, name, code.name, seconds)
        _log(name, code, text, seconds * 1e3)


def _unless_bytes(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Return a serializer that takes an answer which is bytes already as it is (wire_lists.py)."""
    return lambda answer: answer if type(answer) is bytes else serialize(answer)


def _object_of(request: Any) -> str:  # noqa: ANN401 - any request message
    return getattr(request, "container_id", "") or getattr(request, "pod_sandbox_id", "") or "-"


def _printable(text: str) -> str:
    cut = text if len(text) <= MAX_MESSAGE_LENGTH else text[:MAX_MESSAGE_LENGTH] + " …"
    return cut.encode("utf-8", "replace").decode()


def _log(name: str, code: StatusCode, text: str, took_ms: float) -> None:
    level = logging.DEBUG if code is StatusCode.OK else logging.INFO
    if log.isEnabledFor(level):
        log.log(
            level,
            "request=%s rpc=%s object=%s code=%s ms=%.2f%s",
            request_id.get(),
            name,
            object_id.get()[:13],
            code.name,
            took_ms,
            f" error={text!r}" if text else "",
        )
