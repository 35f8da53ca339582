"""Challenges, credentials, origins, redaction, settings: what needs no registry."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.plugin.errors import BackendError, InvalidArgument, NotFound
from polypod.plugin.requests import Auth
from polypod_image.registry import client
from polypod_image.registry.challenge import MAX_HEADER, Challenge, chosen, parse_challenges
from polypod_image.registry.credentials import NOBODY, credential_of, fits
from polypod_image.registry.failures import Kind, RequestFailed, redacted, shown_url, told
from polypod_image.registry.hosts import Endpoint
from polypod_image.registry.origins import Origin, is_own, origin_of, why_not
from polypod_image.registry.settings import parse

# Challenges


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        (['Basic realm="a"'], [("basic", {"realm": "a"})]),
        (
            ['Bearer realm="https://t/x?a=b,c",service="s",scope="repository:a/b:pull,push"'],
            [
                (
                    "bearer",
                    {
                        "realm": "https://t/x?a=b,c",
                        "service": "s",
                        "scope": "repository:a/b:pull,push",
                    },
                )
            ],
        ),
        (
            ['Basic realm="a", Bearer realm="b" , service=c'],
            [("basic", {"realm": "a"}), ("bearer", {"realm": "b", "service": "c"})],
        ),
        (
            ["Negotiate", 'BEARER Realm="q\\"uote"'],
            [("negotiate", {}), ("bearer", {"realm": 'q"uote'})],
        ),
        (["Negotiate, Basic"], [("negotiate", {}), ("basic", {})]),
        (['Basic realm="a",realm="b"'], [("basic", {"realm": "a"})]),
        (['Basic realm="unfinished'], [("basic", {})]),
        (["", ",,,", "="], []),
    ],
)
def test_challenges(headers, wanted):
    assert parse_challenges(headers) == [Challenge(*each) for each in wanted]


def test_a_token_is_chosen_before_a_password():
    assert chosen(parse_challenges(['Basic realm="a"', 'Bearer realm="b"'])).scheme == "bearer"
    assert chosen(parse_challenges(['Digest realm="a"', "Basic"])).scheme == "basic"
    assert chosen(parse_challenges(["Negotiate"])) is None


@given(st.lists(st.text(max_size=200), max_size=3))
def test_any_header_is_read_to_an_end(headers):
    for each in parse_challenges(headers):
        assert each.scheme == each.scheme.lower()


def test_a_long_header_is_cut():
    assert len(parse_challenges(["a," * MAX_HEADER])) <= MAX_HEADER


# Credentials


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("auth", "source", "username", "secret", "bearer"),
    [
        (None, "none", "", "", ""),
        (Auth(), "none", "", "", ""),
        (Auth(username="u", password="p", identity_token="i"), "username", "u", "p", ""),
        (Auth(identity_token="i", auth=b64("a:b")), "identity_token", "", "i", ""),
        (Auth(auth=b64("a:b:c\0\0"), registry_token="r"), "auth", "a", "b:c", ""),
        (Auth(registry_token="r"), "registry_token", "", "", "r"),
    ],
)
def test_precedence_of_credentials(auth, source, username, secret, bearer):
    found = credential_of(auth, "r.example")
    assert (found.source, found.username, found.secret, found.bearer) == (
        source,
        username,
        secret,
        bearer,
    )
    for value in filter(None, (secret, bearer)):
        assert f"'{value}'" not in repr(found)


@pytest.mark.parametrize(
    "auth",
    [
        Auth(auth="%%%"),
        Auth(auth=b64("nocolon")),
        Auth(username="a:b"),
        Auth(registry_token="a\r\nb: c"),
        Auth(username="u", password="x" * 100_000),
    ],
)
def test_credentials_that_no_header_can_carry(auth):
    with pytest.raises(InvalidArgument):
        credential_of(auth, "r.example")


def endpoint(base: str, namespace: str, *, mirror: bool = False) -> Endpoint:
    return Endpoint(base, origin_of(base), namespace, mirror=mirror)


@pytest.mark.parametrize(
    ("server", "base", "namespace", "mirror", "wanted"),
    [
        ("", "https://r.example/v2", "r.example", False, True),
        ("", "https://real.example/v2", "r.example", False, True),
        ("", "https://m.example/v2", "r.example", True, False),
        ("m.example", "https://m.example/v2", "r.example", True, True),
        ("https://m.example/v1/", "https://m.example/v2", "r.example", True, True),
        ("other.example", "https://r.example/v2", "r.example", False, False),
        ("r.example:5000", "https://r.example/v2", "r.example", False, False),
        ("r.example:5000", "https://r.example:5000/v2", "r.example:5000", False, True),
        (
            "https://index.docker.io/v1/",
            "https://registry-1.docker.io/v2",
            "docker.io",
            False,
            True,
        ),
        ("docker.io", "https://registry-1.docker.io/v2", "docker.io", False, True),
        ("", "https://m.example/v2", "docker.io", True, False),
    ],
)
def test_who_may_see_a_credential(server, base, namespace, mirror, wanted):
    found = credential_of(Auth(username="u", password="p", server_address=server), namespace)
    assert fits(found, endpoint(base, namespace, mirror=mirror)) is wanted
    assert not fits(NOBODY, endpoint(base, namespace, mirror=mirror))


# Origins


def test_origins():
    assert origin_of("HTTPS://R.Example/x") == Origin("https", "r.example", 443)
    assert str(origin_of("http://[::1]:5000/")) == "http://[::1]:5000"
    assert origin_of("http://r.example:80").authority == "r.example"


@pytest.mark.parametrize(
    "url", ["", "r.example", "ftp://x", "https://", "https://x:99999", "https://u@x", "http://[::1"]
)
def test_what_is_no_origin(url):
    with pytest.raises(InvalidArgument):
        origin_of(url)


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("x.localhost", True),
        ("169.254.169.254", True),
        ("fe80::1", True),
        ("fe80::1%eth0", True),
        ("0.0.0.0", True),
        ("::", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:169.254.169.254", True),
        ("224.0.0.1", True),
        ("10.0.0.1", False),
        ("192.0.2.1", False),
        ("r.example", False),
        ("::ffff:10.0.0.1", False),
    ],
)
def test_addresses_of_this_host_itself(host, wanted):
    assert is_own(host) is wanted


@pytest.mark.parametrize(
    ("target", "base", "allowed"),
    [
        ("https://t.example", "https://r.example", True),
        ("http://t.example", "https://r.example", False),
        ("http://t.example", "http://r.example", True),
        ("https://127.0.0.1", "https://r.example", False),
        ("http://127.0.0.1:1", "http://127.0.0.1:2", True),
        ("http://localhost:1", "http://127.0.0.1:2", True),
        ("http://169.254.169.254", "http://127.0.0.1:2", False),
        ("http://169.254.1.1:80", "http://169.254.1.1:5000", True),
    ],
)
def test_where_a_registry_may_send_us(target, base, allowed):
    reason = why_not(origin_of(target), origin_of(base), what="redirect")
    assert (reason == "") is allowed


# Texts


@pytest.mark.parametrize(
    "text",
    [
        "GET https://user:SECRET@h.example/x",
        "https://h.example/x?sig=SECRET&y=1 failed",
        "Authorization: Bearer SECRET",
        "Authorization: Basic SECRET",
        '{"token": "SECRET"}',
        '{"access_token":"SECRET"}',
        "identitytoken=SECRET",
        "password: SECRET",
        "X-Amz-Signature=SECRET",
        "bearer SECRET",
    ],
)
def test_secrets_are_taken_out(text):
    assert "SECRET" not in redacted(text)


@given(st.text(max_size=300))
def test_what_is_shown_is_one_printable_line(text):
    assert redacted(text).isprintable()


def test_what_is_no_secret_stays():
    text = "https://r.example/v2/a/manifests/1: status 404"
    assert redacted(text) == text
    assert shown_url("https://h.example/a?b=c#d") == "https://h.example/a?…"
    assert shown_url("http://[oops") == "(an unreadable URL)"


@pytest.mark.parametrize(
    ("kinds", "error", "begins"),
    [
        ([Kind.MISSING], NotFound, "x: not found"),
        ([Kind.MISSING, Kind.MISSING], NotFound, "x: not found"),
        ([Kind.MISSING, Kind.UNREACHABLE], BackendError, "RegistryUnavailable: x"),
        ([Kind.BUSY], BackendError, "RegistryUnavailable: x"),
        ([Kind.STALLED], BackendError, "RegistryUnavailable: x"),
        ([], BackendError, "RegistryUnavailable: x"),
        ([Kind.DENIED], BackendError, "x: pull access denied"),
        ([Kind.MISSING, Kind.DENIED], BackendError, "x: pull access denied"),
        ([Kind.LIES, Kind.UNREACHABLE], BackendError, "x: why"),
        ([Kind.REFUSED], BackendError, "x: why"),
    ],
)
def test_what_a_client_is_told(kinds, error, begins):
    found = told("x", [RequestFailed(each, "why") for each in kinds])
    assert type(found) is error
    assert str(found).startswith(begins)


# Settings


def test_settings_have_defaults_and_limits():
    found = parse({})
    assert (found.progress_timeout_s, found.parallel_layers, found.attempts) == (60, 3, 3)
    assert parse({"token_realms": ["T.Example"]}).realms == {"t.example"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hosts_dir", "relative"),
        ("hosts_dir", 1),
        ("pull_progress_timeout_s", 0),
        ("pull_progress_timeout_s", "60"),
        ("pull_parallel_layers", 0),
        ("pull_parallel_layers", True),
        ("pull_attempts", 100),
        ("token_realms", "t.example"),
        ("token_realms", [1]),
    ],
)
def test_settings_that_are_wrong_are_named(key, value):
    with pytest.raises(InvalidArgument, match=f"images.{key}"):
        parse({key: value})


# Waiting


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("Wed, 21 Oct 2015 07:28:00 -0000", None),
    ],
)
def test_retry_after(text, wanted):
    assert client.retry_after(text) == wanted


def test_retry_after_a_date_to_come():
    assert client.retry_after("Fri, 31 Dec 2999 23:59:59 GMT") > client.MAX_WAIT_S
