"""The endpoint speaks as much HTTP as a scraper needs, and no more."""

from __future__ import annotations

import asyncio

import pytest

from polypod.plugin.errors import FailedPrecondition, InvalidArgument
from polypod.telemetry import endpoint as module
from polypod.telemetry.endpoint import MetricsEndpoint, parse_address


@pytest.fixture
async def endpoint():
    made = MetricsEndpoint("127.0.0.1:0", lambda: b"x 1\n", "text/plain; version=0.0.4")
    await made.start()
    yield made
    await made.stop()
    await made.stop()


async def ask(endpoint: MetricsEndpoint, request: bytes) -> tuple[str, bytes]:
    """Return the status line and the body of an answer; both empty if there was none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
    try:
        writer.write(request)
        if not request.endswith(b"\r\n\r\n"):
            writer.write_eof()
        head, _, body = (await asyncio.wait_for(reader.read(), 20)).partition(b"\r\n\r\n")
        return head.split(b"\r\n")[0].decode(), body
    finally:
        writer.close()


async def test_a_scraper_gets_the_text(endpoint):
    status, body = await ask(endpoint, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (status, body) == ("HTTP/1.1 200 OK", b"x 1\n")
    status, body = await ask(endpoint, b"GET /metrics?name=y HTTP/1.0\r\n\r\n")
    assert status == "HTTP/1.1 200 OK"
    status, body = await ask(endpoint, b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert (status, body) == ("HTTP/1.1 200 OK", b"")


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "404"),
        (b"GET /metrics/../etc/passwd HTTP/1.1\r\n\r\n", "404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
        (b"nonsense\r\n\r\n", "400"),
        (b"GET /metrics SPDY/3\r\n\r\n", "400"),
    ],
)
async def test_anything_else_is_refused(endpoint, request_, code):
    status, _body = await ask(endpoint, request_)
    assert status.split()[1] == code


@pytest.mark.parametrize("request_", [b"GET /metrics HT", b"x" * 20_000 + b"\r\n\r\n"])
async def test_half_a_request_and_an_endless_one_are_not_answered(endpoint, request_):
    try:
        status, _body = await ask(endpoint, request_)
    except ConnectionError:
        status = ""
    assert status == ""
    assert (await ask(endpoint, b"GET /metrics HTTP/1.1\r\n\r\n"))[0] == "HTTP/1.1 200 OK"


async def test_a_client_that_says_nothing_is_let_go(endpoint, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE_S", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
    assert await asyncio.wait_for(reader.read(), 20) == b""
    writer.close()


async def test_an_address_that_is_taken_is_named(endpoint):
    again = MetricsEndpoint(f"127.0.0.1:{endpoint.port}", lambda: b"", "text/plain")
    with pytest.raises(FailedPrecondition, match=str(endpoint.port)):
        await again.start()


def test_addresses():
    assert parse_address("127.0.0.1:9090") == ("127.0.0.1", 9090)
    assert parse_address("[::1]:1") == ("::1", 1)
    for wrong in ("", "9090", ":9090", "localhost", "localhost:http", "x:70000"):
        with pytest.raises(InvalidArgument, match=r"metrics\.listen"):
            parse_address(wrong)
