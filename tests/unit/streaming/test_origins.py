"""A5: Host and Origin of requests that came directly."""

import socket

import pytest

from polypod.streaming.handshake import Refused, Request
from polypod.streaming.origins import check


def request(**headers):
    return Request("GET", "/exec/t", [(n.replace("_", "-"), v) for n, v in headers.items()])


GOOD = {
    "an address": {"host": "127.0.0.1:4000"},
    "an address of version 6": {"host": "[::1]:4000"},
    "localhost": {"host": "localhost:4000"},
    "this host's name": {"host": socket.gethostname()},
    "a name of the server": {"host": "streams.example:1"},
    "a page of this host": {"host": "127.0.0.1", "origin": "http://localhost:8001"},
    "a page of the loopback": {"host": "localhost", "origin": "http://127.0.0.1"},
    "passed on by a kubelet": {"host": "node-1.example:10250", "x_forwarded_for": "10.0.0.1"},
    "a console's page, passed on by a kubelet": {
        "host": "node-1",
        "origin": "https://console.example",
        "x_forwarded_for": "10.0.0.1",
    },
}
BAD = {
    "a rebound name": {"host": "evil.example:4000"},
    "a rebound page": {"host": "evil.example", "origin": "http://evil.example"},
    "a foreign page": {"host": "127.0.0.1", "origin": "http://evil.example"},
    "a foreign page by address": {"host": "127.0.0.1", "origin": "http://10.6.6.6"},
    "a page of its own address": {"host": "10.6.6.6", "origin": "http://10.6.6.6"},
    "a page of nowhere": {"host": "127.0.0.1", "origin": "null"},
    "no host": {"host": ""},
    "a host that is none": {"host": "[::1"},
    "two hosts": {"host": "127.0.0.1", "Host": "x"},
}


@pytest.mark.parametrize("headers", GOOD.values(), ids=GOOD)
def test_a5_who_may_connect(headers):
    check(request(**headers), ["streams.example"])


@pytest.mark.parametrize("headers", BAD.values(), ids=BAD)
def test_a5_who_may_not(headers):
    named = [(name.lower().replace("_", "-"), value) for name, value in headers.items()]
    with pytest.raises(Refused) as refused:
        check(Request("GET", "/", named))
    assert refused.value.status in (400, 403)
