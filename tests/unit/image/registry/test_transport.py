"""The transport: names that lead to this host, proxies, certificates that cannot be read."""

from __future__ import annotations

import pytest

from polypod_image.registry import transport
from polypod_image.registry.failures import RequestFailed
from polypod_image.registry.hosts import Tls


class Resolver:
    """Answers every name with some addresses."""

    def __init__(self, *addresses):
        self.addresses = addresses

    async def resolve(self, host, port, _family):
        return [{"hostname": host, "host": each, "port": port} for each in self.addresses]

    async def close(self):
        pass


async def test_a_name_of_a_strangers_choice_does_not_lead_to_this_host():
    """I8: DNS may answer anything."""
    guard = transport._Guard()
    guard._inner = Resolver("127.0.0.1", "192.0.2.1", "169.254.169.254", "::1")
    found = await guard.resolve("t.example", 443)
    assert [each["host"] for each in found] == ["192.0.2.1"]
    guard._inner = Resolver("169.254.169.254")
    with pytest.raises(OSError, match="leads to this host itself"):
        await guard.resolve("t.example", 443)
    await guard.close()


def test_proxies_come_from_the_environment_and_never_stand_before_this_host(monkeypatch):
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert transport.proxy_for("https://r.example/v2") is None
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "inner.example")
    assert transport.proxy_for("https://r.example/v2") == "http://proxy.example:3128"
    assert transport.proxy_for("http://r.example/v2") is None
    assert transport.proxy_for("https://x.inner.example/v2") is None
    assert transport.proxy_for("https://127.0.0.1:5000/v2") is None


def test_certificates_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "bad.pem").write_text("nothing")
    for name in ("gone.pem", "bad.pem"):
        with pytest.raises(RequestFailed, match=name):
            transport.tls_context(Tls(ca=(tmp_path / name,)))
        with pytest.raises(RequestFailed, match=name):
            transport.tls_context(Tls(client=((tmp_path / name, None),)))
