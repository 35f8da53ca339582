"""``hosts.toml``: which endpoints, in which order, with what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polypod.plugin.errors import InvalidArgument
from polypod_image.registry.hosts import has_rule, plan

MIRRORS = """\
server = "https://registry.example"

[host."https://one.example"]
capabilities = ["pull"]
ca = ["ca.pem", "/etc/other.pem"]
client = [["c.pem", "c.key"], ["both.pem", ""]]
dial_timeout = "1m30s"

[host."http://two.example:5000/prefix"]
skip_verify = true
[host."http://two.example:5000/prefix".header]
x-team = ["a", "b"]
x-one = "c"

[host."three.example/v2"]
override_path = true
"""


def write(place: Path, host: str, text: str) -> Path:
    file = place / host / "hosts.toml"
    file.parent.mkdir()
    file.write_text(text)
    return file


def test_the_order_of_the_file_and_the_server_last(tmp_path):
    file = write(tmp_path, "registry.example", MIRRORS)
    found = plan(tmp_path, "registry.example")
    assert found.rule == str(file)
    assert [each.base for each in found.endpoints] == [
        "https://one.example/v2",
        "http://two.example:5000/prefix/v2",
        "https://three.example/v2",
        "https://registry.example/v2",
    ]
    assert [each.mirror for each in found.endpoints] == [True, True, True, False]


def test_what_a_table_says_of_its_host(tmp_path):
    write(tmp_path, "registry.example", MIRRORS)
    one, two, three, _ = plan(tmp_path, "registry.example").endpoints
    here = tmp_path / "registry.example"
    assert one.capabilities == {"pull"}
    assert one.tls.ca == (here / "ca.pem", Path("/etc/other.pem"))
    assert one.tls.client == ((here / "c.pem", here / "c.key"), (here / "both.pem", None))
    assert one.dial_timeout_s == 90
    assert two.tls.skip_verify
    assert two.headers == (("x-team", "a"), ("x-team", "b"), ("x-one", "c"))
    assert "x-team" not in repr(two)
    assert {"pull", "resolve"} <= three.capabilities
    assert one.url("a/manifests/1") == "https://one.example/v2/a/manifests/1?ns=registry.example"


@pytest.mark.parametrize(
    ("host", "base"),
    [
        ("registry.example", "https://registry.example/v2"),
        ("registry.example:5000", "https://registry.example:5000/v2"),
        ("docker.io", "https://registry-1.docker.io/v2"),
        ("localhost:5000", "http://localhost:5000/v2"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000/v2"),
        ("127.0.0.1:443", "https://127.0.0.1/v2"),
        ("[::1]:5000", "http://[::1]:5000/v2"),
        ("10.0.0.1:5000", "https://10.0.0.1:5000/v2"),
    ],
)
def test_without_a_rule_the_registry_itself_and_plain_http_on_loopback_alone(host, base, tmp_path):
    (endpoint,) = plan(tmp_path, host).endpoints
    assert endpoint.base == base
    assert not endpoint.mirror
    assert "ns=" not in endpoint.url("x")


def test_the_directory_is_found_by_host_then_escaped_port_then_default(tmp_path):
    default = write(tmp_path, "_default", 'server = "http://127.0.0.1:1"\n')
    assert plan(tmp_path, "r.example:5000").rule == str(default)
    assert not has_rule(tmp_path, "r.example:5000")
    escaped = write(tmp_path, "r.example_5000_", "")
    assert plan(tmp_path, "r.example:5000").rule == str(escaped)
    exact = write(tmp_path, "r.example:5000", "")
    assert plan(tmp_path, "r.example:5000").rule == str(exact)
    assert has_rule(tmp_path, "r.example:5000")


def test_a_mirror_that_is_the_registry_is_asked_once_and_is_none(tmp_path):
    write(tmp_path, "r.example", '[host."https://r.example"]\ncapabilities = ["pull"]\n')
    (endpoint,) = plan(tmp_path, "r.example").endpoints
    assert not endpoint.mirror


def test_a_server_that_is_not_the_named_host_is_told_whom_it_serves(tmp_path):
    write(tmp_path, "r.example", 'server = "http://10.0.0.1:5000"\n')
    (own,) = plan(tmp_path, "r.example").endpoints
    assert not own.mirror
    assert own.url("x").endswith("/x?ns=r.example")


def test_the_server_of_default_is_nobodys_own(tmp_path):
    write(tmp_path, "_default", 'server = "http://10.0.0.1:5000"\n')
    (shared,) = plan(tmp_path, "r.example").endpoints
    assert shared.mirror
    (own,) = plan(tmp_path, "10.0.0.1:5000").endpoints
    assert not own.mirror


def test_a_directory_of_certificates_alone(tmp_path):
    place = tmp_path / "r.example"
    place.mkdir()
    for name in ("ca.crt", "me.cert", "me.key", "alone.cert"):
        (place / name).touch()
    (endpoint,) = plan(tmp_path, "r.example").endpoints
    assert endpoint.tls.ca == (place / "ca.crt",)
    assert endpoint.tls.client == (
        (place / "alone.cert", None),
        (place / "me.cert", place / "me.key"),
    )


BAD = {
    "no toml": ("server = ", "hosts.toml"),
    "unknown": ("mirror = 1", "unknown key 'mirror'"),
    "server": ("server = 1", "server"),
    "scheme": ('server = "ftp://x"', "no URL of http"),
    "user": ('server = "https://u:p@x"', "must not hold a user name"),
    "query": ('server = "https://x/?a=b"', "without query"),
    "port": ('server = "https://x:port"', "no URL"),
    "host": ("host = 1", "host"),
    "table": ('[host]\n"https://x" = 1', "a table"),
    "capability": ('[host."https://x"]\ncapabilities = ["fly"]', "'fly'"),
    "inner key": ('[host."https://x"]\nspeed = 1', "unknown key 'speed'"),
    "flag": ('[host."https://x"]\nskip_verify = "yes"', "true or false"),
    "ca": ('[host."https://x"]\nca = 1', "a string"),
    "client": ('[host."https://x"]\nclient = [["a", "b", "c"]]', "CERTIFICATE, KEY"),
    "time": ('[host."https://x"]\ndial_timeout = "soon"', "'soon'"),
    "long": ('[host."https://x"]\ndial_timeout = "2h"', "at most 1h"),
    "header": ('[host."https://x".header]\n"a b" = "c"', "no header of HTTP"),
    "value": ('[host."https://x".header]\na = "b\\r\\nc: d"', "no header of HTTP"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_file_is_named_with_its_key(name, tmp_path):
    text, words = BAD[name]
    file = write(tmp_path, "r.example", text)
    with pytest.raises(InvalidArgument) as failed:
        plan(tmp_path, "r.example")
    assert words in str(failed.value)
    assert str(file) in str(failed.value)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    write(tmp_path, "r.example", "#" * (1 << 21))
    with pytest.raises(InvalidArgument, match="larger than"):
        plan(tmp_path, "r.example")


WORDS = st.sampled_from(
    ["server", "host", "capabilities", "ca", "client", "header", "dial_timeout", "override_path"]
)
VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(-9, 9), st.text(max_size=9), st.just("https://x")),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=8,
)


def toml(value) -> str:
    """Write a value as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value) if isinstance(value, str) else str(value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.dictionaries(WORDS, VALUES, max_size=5))
def test_any_file_gives_endpoints_or_a_clear_error(tmp_path, table):
    file = tmp_path / "r.example" / "hosts.toml"
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(f"{key} = {toml(value)}" for key, value in table.items()))
    told, found = "", ()
    try:
        found = plan(tmp_path, "r.example").endpoints
    except InvalidArgument as error:
        told = str(error)
    assert found or str(file) in told
