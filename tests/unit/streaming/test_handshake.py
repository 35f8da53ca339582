"""The request that becomes a stream: what is upgraded to what, what is refused, and how."""

import base64

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.streaming.errors import ProtocolError
from polypod.streaming.handshake import MAX_HEADER_BYTES, Handshake, Refused, negotiate
from polypod.streaming.protocols import Kind

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455, 1.3
SPDY = ("Connection: Upgrade", "Upgrade: SPDY/3.1")
WEBSOCKET = (
    "Connection: keep-alive, Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    f"Sec-WebSocket-Key: {KEY}",
)


def raw(*headers, method="POST", target="/exec/token?x=1", version="HTTP/1.1"):
    lines = [f"{method} {target} {version}", "Host: 127.0.0.1", *headers, "", ""]
    return "\r\n".join(lines).encode()


def asked(*headers, kind=Kind.EXEC, **rest):
    """What a request is upgraded to."""
    return negotiate(Handshake().receive(raw(*headers, **rest)), kind)


def test_a_request_is_read_in_any_pieces():
    handshake = Handshake()
    data = raw(*SPDY)
    found = [handshake.receive(data[i : i + 1]) for i in range(len(data))]
    assert found[:-1] == [None] * (len(data) - 1)
    assert (found[-1].method, found[-1].path) == ("POST", "/exec/token")


@pytest.mark.parametrize(
    ("offered", "chosen"),
    {
        "the newest first, as kubectl": (
            ["v4.channel.k8s.io", "v3.channel.k8s.io"],
            "v4.channel.k8s.io",
        ),
        "the client's order decides": (
            ["v2.channel.k8s.io", "v4.channel.k8s.io"],
            "v2.channel.k8s.io",
        ),
        "unknown ones are passed over": (
            ["v9.channel.k8s.io", "v3.channel.k8s.io"],
            "v3.channel.k8s.io",
        ),
        "in one header": (["v9.x, v4.channel.k8s.io"], "v4.channel.k8s.io"),
        "none named": ([], ""),
    }.values(),
)
def test_spdy_versions(offered, chosen):
    upgrade = asked(*SPDY, *(f"X-Stream-Protocol-Version: {name}" for name in offered))
    assert (upgrade.websocket, upgrade.dialect.name) == (False, chosen)
    named = [value for name, value in upgrade.headers if name == "X-Stream-Protocol-Version"]
    assert named == ([chosen] if chosen else [])


@pytest.mark.parametrize(
    ("kind", "offered", "chosen"),
    [
        (Kind.EXEC, "v5.channel.k8s.io, v4.channel.k8s.io", "v5.channel.k8s.io"),
        (Kind.ATTACH, "v4.base64.channel.k8s.io", "v4.base64.channel.k8s.io"),
        (Kind.EXEC, "base64.channel.k8s.io", "base64.channel.k8s.io"),
        (Kind.EXEC, "", ""),
        (Kind.PORT_FORWARD, "SPDY/3.1+portforward.k8s.io", "SPDY/3.1+portforward.k8s.io"),
        (Kind.PORT_FORWARD, "v4.channel.k8s.io", "v4.channel.k8s.io"),
    ],
)
def test_websocket_protocols(kind, offered, chosen):
    named = [f"Sec-WebSocket-Protocol: {offered}"] if offered else []
    upgrade = asked(*WEBSOCKET, *named, kind=kind, method="GET")
    assert (upgrade.websocket, upgrade.dialect.name) == (True, chosen)
    assert ("Sec-WebSocket-Accept", ACCEPT) in upgrade.headers
    answered = [value for name, value in upgrade.headers if name == "Sec-WebSocket-Protocol"]
    assert answered == ([chosen] if chosen else [])


@pytest.mark.parametrize(
    ("headers", "rest", "status"),
    {
        "no upgrade": ((), {}, 400),
        "an upgrade of another connection": (("Upgrade: SPDY/3.1",), {}, 400),
        "an upgrade to something else": (("Connection: Upgrade", "Upgrade: h2c"), {}, 400),
        "a version that nobody knows": ((*SPDY, "X-Stream-Protocol-Version: v9"), {}, 403),
        "a protocol of port-forward for an exec": (
            (*SPDY, "X-Stream-Protocol-Version: portforward.k8s.io"),
            {},
            403,
        ),
        "a websocket protocol that nobody knows": (
            (*WEBSOCKET, "Sec-WebSocket-Protocol: chat"),
            {"method": "GET"},
            403,
        ),
        "a websocket by POST": (WEBSOCKET, {}, 405),
        "websocket version 8": (
            ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 8"),
            {"method": "GET"},
            426,
        ),
        "no key": (WEBSOCKET[:3], {"method": "GET"}, 400),
        "a short key": ((*WEBSOCKET[:3], "Sec-WebSocket-Key: YWJj"), {"method": "GET"}, 400),
        "two keys": ((*WEBSOCKET, f"Sec-WebSocket-Key: {KEY}"), {"method": "GET"}, 400),
    }.values(),
)
def test_what_is_no_upgrade_is_refused(headers, rest, status):
    with pytest.raises(Refused) as refused:
        asked(*headers, **rest)
    assert refused.value.status == status


def test_who_is_refused_for_its_protocol_hears_of_the_others():
    with pytest.raises(Refused) as refused:
        asked(*SPDY, "X-Stream-Protocol-Version: v9")
    offered = [value for name, value in refused.value.headers if name.startswith("X-Accepted")]
    assert offered[0] == "v4.channel.k8s.io"


@pytest.mark.parametrize(
    "data",
    {
        "no http": b"\x80\x03\x00\x01whatever\r\n\r\n",
        "a body": raw(*SPDY, "Content-Length: 5") + b"hello",
        "a body in chunks": raw(*SPDY, "Transfer-Encoding: chunked"),
        "no host": b"GET / HTTP/1.1\r\n\r\n",
        "endless headers": b"GET / HTTP/1.1\r\nA: " + b"a" * (MAX_HEADER_BYTES + 1),
    }.values(),
)
def test_what_is_no_such_request_is_refused(data):
    with pytest.raises(Refused) as refused:
        Handshake().receive(data)
    assert 400 <= refused.value.status < 500


@pytest.mark.parametrize("data", [b"", b"GET / HT"], ids=["at once", "in the middle"])
def test_a_client_that_leaves_is_no_request(data):
    handshake = Handshake()
    if data:
        assert handshake.receive(data) is None
    with pytest.raises(ProtocolError):
        handshake.receive(b"")


def test_the_answer_to_an_upgrade_and_what_came_behind_it():
    handshake = Handshake()
    request = handshake.receive(raw(*SPDY) + b"\x80\x03frames")
    answer, first = handshake.accept(negotiate(request, Kind.EXEC))
    assert first == b"\x80\x03frames"
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "a"), ("Upgrade", "b")]))
    client.send(h11.EndOfMessage())
    client.receive_data(answer)
    assert client.next_event().status_code == 101


def test_a_refusal_closes_the_connection_and_reads_no_second_request():
    handshake = Handshake()
    handshake.receive(raw() + raw(*SPDY, target="/exec/smuggled"))
    answer = handshake.refuse(Refused(404, "no such stream", [("Allow", "GET")]))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404 ")
    assert b"connection: close" in head.lower()
    assert body == b"no such stream\n"
    assert handshake.refuse(Refused(404, "again")) == b""


@given(st.lists(st.binary(max_size=80), max_size=6))
def test_any_bytes_are_a_request_a_refusal_or_nothing(pieces):
    handshake = Handshake()
    try:
        for piece in pieces:
            if piece and handshake.receive(piece) is not None:
                return
    except (Refused, ProtocolError):
        return


@given(st.binary(min_size=16, max_size=16))
def test_any_key_of_16_bytes_is_answered(key):
    named = (*WEBSOCKET[:3], f"Sec-WebSocket-Key: {base64.b64encode(key).decode()}")
    accept = dict(asked(*named, method="GET").headers)["Sec-WebSocket-Accept"]
    assert len(base64.b64decode(accept)) == 20
