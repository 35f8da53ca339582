"""References, digests, platforms, options: the small parsers."""

from __future__ import annotations

import pytest

from polypod.plugin.errors import InvalidArgument, NotFound
from polypod_image.digests import chain_ids, digest_of, parse_digest
from polypod_image.documents import Descriptor, Platform
from polypod_image.finding import find
from polypod_image.options import DevicePolicy, parse
from polypod_image.platforms import choose, fit, parse_platform
from polypod_image.references import candidates, parse_reference, with_digest

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("user/app", "docker.io/user/app:latest"),
        ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/a/b/c:v1", "localhost:5000/a/b/c:v1"),
        ("host.example/app", "host.example/app:latest"),
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
        (f"app@{DIGEST}", f"docker.io/library/app@{DIGEST}"),
        (f"app:v1@{DIGEST}", f"docker.io/library/app:v1@{DIGEST}"),
        ("a__b/c--d.e", "docker.io/a__b/c--d.e:latest"),
        ("UPPERhost/app", "UPPERhost/app:latest"),
    ],
)
def test_references(text, canonical):
    assert str(parse_reference(text)) == canonical
    assert str(parse_reference(canonical)) == canonical


@pytest.mark.parametrize(
    "text",
    ["", "A", "a b", "a:", "a:b:c", "/a", "a/", "a//b", "-a", "a..b", "a@", "a@sha256:1", f"@{DIGEST}",
     "a" * 256, "x:" + "t" * 129, "http://a/b", "a\n", "a\0b", "b" * 64, "host:99999999/a", "ä"],
)  # fmt: skip
def test_what_is_no_reference(text):
    with pytest.raises(InvalidArgument):
        parse_reference(text)


def test_short_names_may_be_of_this_host():
    assert [str(each) for each in candidates("demo")] == [
        "docker.io/library/demo:latest",
        "localhost/demo:latest",
    ]
    assert len(candidates("localhost/demo")) == 1


def test_with_digest_drops_the_tag():
    assert with_digest(parse_reference("a:v1"), DIGEST) == f"docker.io/library/a@{DIGEST}"


@pytest.mark.parametrize("text", ["", "sha256:", "sha256:" + "A" * 64, "sha256:" + "a" * 63, "md5:" + "a" * 32,
                                  "sha256:../" + "a" * 61, "sha512:" + "a" * 64])  # fmt: skip
def test_bad_digests(text):
    with pytest.raises(InvalidArgument):
        parse_digest(text)


def test_chain_ids_are_the_specs():
    first, second = digest_of(b"1"), digest_of(b"2")
    assert chain_ids([first, second]) == (first, digest_of(f"{first} {second}".encode()))
    assert chain_ids([]) == ()


@pytest.mark.parametrize(
    ("found", "wanted", "rank"),
    [
        ("linux/amd64", "linux/amd64", 0),
        ("linux/amd64/v3", "linux/amd64", -1),
        ("linux/amd64/v2", "linux/amd64/v3", 1),
        ("linux/arm/v6", "linux/arm/v7", 1),
        ("linux/arm/v7", "linux/arm/v6", -1),
        ("linux/arm64", "linux/arm64/v8", 0),
        ("windows/amd64", "linux/amd64", -1),
    ],
)
def test_fit(found, wanted, rank):
    assert fit(parse_platform(found), parse_platform(wanted)) == rank


def test_choose_takes_the_best_and_the_first_of_equals():
    def at(number, platform):
        return Descriptor("t", f"sha256:{number:064d}", 1, platform and parse_platform(platform))

    offered = [at(1, "linux/arm/v5"), at(2, "linux/arm/v7"), at(3, "linux/arm/v7"), at(4, None)]
    assert choose(offered, Platform("linux", "arm", "v7"), "x") is offered[1]
    with pytest.raises(NotFound, match="linux/arm/v5"):
        choose(offered, Platform("linux", "amd64"), "x")
    assert choose(offered[3:], Platform("linux", "amd64"), "x") is offered[3]


class _Catalog:
    """Two images whose ids begin alike."""

    def __init__(self):
        self.shown = {f"sha256:abc{number:061d}": number for number in (1, 2)}
        self.names = {"docker.io/library/abc:latest": ("tag", f"sha256:abc{2:061d}")}


def test_find_prefers_names_and_refuses_ambiguous_prefixes():
    catalog = _Catalog()
    assert find(catalog, "abc") == 2
    assert find(catalog, f"abc{1:061d}") == 1
    for prefix in ("abc0", "sha256:abc", f"abc{0:050d}"):
        with pytest.raises(InvalidArgument, match="fits 2"):
            find(catalog, prefix)
    assert find(catalog, "ab") is None
    assert find(catalog, "sha256:abd") is None


def test_options_have_defaults_and_leave_the_registrys_keys_alone():
    options = parse({"hosts_dir": "/etc/hosts.d", "registry": {"x": 1}})
    assert str(options.oci_dirs[0]) == "/"
    assert options.limits.devices is DevicePolicy.SKIP
    assert options.overlay_options == ("volatile",)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"oci_dir": ["/"]}, "oci_dir"),
        ({"oci_dirs": "/"}, "oci_dirs"),
        ({"oci_dirs": ["relative"]}, "relative"),
        ({"max_layer_bytes": -1}, "max_layer_bytes"),
        ({"max_layer_inodes": True}, "max_layer_inodes"),
        ({"max_file_bytes": "1G"}, "max_file_bytes"),
        ({"min_free_bytes": 1.5}, "min_free_bytes"),
        ({"devices": "maybe"}, "devices"),
        ({"overlay_options": "volatile"}, "overlay_options"),
        ({"usage_interval_s": "often"}, "usage_interval_s"),
    ],
)
def test_wrong_options_name_the_key(options, word):
    with pytest.raises(InvalidArgument, match=word):
        parse(options)
