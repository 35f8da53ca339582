"""A registry that lies: each lie has its words in the error, and nothing of it stays (I5, I6, I8, I12, F13)."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from support.images import image_of, layer_of, noise
from support.lying_registry import NOT_FOUND, Reply

from polypod.plugin.errors import BackendError, InvalidArgument, NotFound, PolypodError, Unsupported

pytestmark = pytest.mark.needs_root

LAYER = layer_of({"data": noise(300_000)})
SMALL = layer_of({"small": b"small"})
IMAGE = image_of([LAYER, SMALL])
MANIFEST = json.loads(IMAGE.manifest)
LAYER_DIGEST = MANIFEST["layers"][0]["digest"]
CONFIG_DIGEST = MANIFEST["config"]["digest"]
OTHER = image_of([layer_of({"other": b"1"})])
EVIL_URL = "http://127.0.0.1:9/v2/x?token=verysecret"


def on_manifest(change):
    """Change answers about manifests."""
    return lambda asked, honest: change(honest) if asked.is_manifest else honest


def on_layer(change):
    """Change answers about the large layer."""
    return lambda asked, honest: change(honest) if LAYER_DIGEST in asked.path else honest


def on_config(change):
    """Change answers about the config."""
    return lambda asked, honest: change(honest) if CONFIG_DIGEST in asked.path else honest


def document(**changes):
    """Return a rule that serves a changed manifest, with a digest that fits."""
    raw = json.dumps({**MANIFEST, **changes}).encode()
    return on_manifest(lambda r: replace(r, headers=(r.headers[0],), body=raw))


def flipped(data: bytes) -> bytes:
    """Return data with one bit changed."""
    return data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]


DEEP = b"[" * 100_000
MANY = [{**MANIFEST["layers"][0]}] * 10_000
LIES = {
    "manifest-digest": (
        on_manifest(lambda r: replace(r, body=OTHER.manifest)),
        BackendError,
        "another digest",
    ),
    "manifest-html": (
        on_manifest(lambda r: Reply(headers=(("Content-Type", "text/html"),), body=b"<html>hi")),
        BackendError,
        "text/html",
    ),
    "manifest-no-json": (
        on_manifest(lambda r: Reply(headers=(r.headers[0],), body=b"nothing")),
        InvalidArgument,
        "no acceptable JSON",
    ),
    "manifest-deep": (
        on_manifest(lambda r: Reply(headers=(r.headers[0],), body=DEEP)),
        InvalidArgument,
        "too deeply",
    ),
    "manifest-endless": (
        on_manifest(lambda r: replace(r, body=b" " * 65536, endless=True)),
        BackendError,
        "4194304 bytes",
    ),
    "manifest-type": (
        on_manifest(
            lambda r: r.with_header("Content-Type", "application/vnd.oci.image.index.v1+json")
        ),
        InvalidArgument,
        "mediaType",
    ),
    "manifest-schema1": (
        on_manifest(
            lambda r: r.with_header(
                "Content-Type", "application/vnd.docker.distribution.manifest.v1+prettyjws"
            )
        ),
        Unsupported,
        "schema 1",
    ),
    "manifest-and-index": (document(manifests=[]), InvalidArgument, "says that it is a manifest"),
    "manifest-many-layers": (document(layers=MANY), InvalidArgument, "at most 127"),
    "manifest-layer-type": (
        document(layers=[{**MANIFEST["layers"][0], "mediaType": "text/plain"}]),
        Unsupported,
        "layer type 'text/plain'",
    ),
    "manifest-bad-digest-header": (
        on_manifest(lambda r: r.with_header("Docker-Content-Digest", "sha256:zz")),
        BackendError,
        "Docker-Content-Digest",
    ),
    "manifest-encoding": (
        on_manifest(lambda r: r.with_header("Content-Encoding", "gzip")),
        BackendError,
        "content encoding 'gzip'",
    ),
    "manifest-truncated": (
        on_manifest(lambda r: replace(r, cut=50)),
        BackendError,
        "RegistryUnavailable",
    ),
    "manifest-hangs": (
        on_manifest(lambda r: replace(r, hang=-1)),
        BackendError,
        "no data for as long",
    ),
    "manifest-hangs-in-the-body": (
        on_manifest(lambda r: replace(r, hang=20)),
        BackendError,
        "no data for as long",
    ),
    "manifest-no-http": (
        on_manifest(lambda r: replace(r, raw=b"SSH-2.0-server\r\n\r\n")),
        BackendError,
        "no HTTP",
    ),
    "manifest-closes": (
        on_manifest(lambda r: replace(r, raw=b"")),
        BackendError,
        "broke off",
    ),
    "manifest-404": (on_manifest(lambda r: NOT_FOUND), NotFound, "not found"),
    "manifest-403": (on_manifest(lambda r: Reply(403)), BackendError, "pull access denied"),
    "manifest-500": (on_manifest(lambda r: Reply(500)), BackendError, "status 500"),
    "manifest-418": (on_manifest(lambda r: Reply(418)), BackendError, "status 418"),
    "manifest-204": (on_manifest(lambda r: Reply(204)), BackendError, "status 204"),
    "manifest-429-for-an-hour": (
        on_manifest(lambda r: Reply(429, (("Retry-After", "3600"),))),
        BackendError,
        "RegistryUnavailable",
    ),
    "401-without-challenge": (lambda a, h: Reply(401), BackendError, "pull access denied"),
    "401-for-ever": (
        lambda a, h: Reply(401, (("WWW-Authenticate", 'Basic realm="r"'),)),
        BackendError,
        "no credentials were given",
    ),
    "redirect-loop": (
        on_manifest(lambda r: Reply(307, (("Location", "/v2/demo/app/manifests/1"),))),
        BackendError,
        "more than 10 redirects",
    ),
    "redirect-to-metadata": (
        on_manifest(lambda r: Reply(307, (("Location", "http://169.254.169.254/latest"),))),
        BackendError,
        "leads to this host itself",
    ),
    "redirect-to-a-file": (
        on_manifest(lambda r: Reply(307, (("Location", "file:///etc/passwd"),))),
        BackendError,
        "no URL of http",
    ),
    "config-digest": (
        on_config(lambda r: replace(r, body=r.body[:-1] + b" ")),
        BackendError,
        "another digest",
    ),
    "config-short": (
        on_config(lambda r: replace(r, body=r.body[:-1])),
        BackendError,
        "its descriptor says",
    ),
    "config-endless": (
        on_config(lambda r: replace(r, endless=True)),
        BackendError,
        "more than the",
    ),
    "layer-digest": (
        on_layer(lambda r: replace(r, body=flipped(r.body))),
        BackendError,
        "another digest",
    ),
    "layer-too-long": (
        on_layer(lambda r: replace(r, body=r.body + b"x")),
        BackendError,
        "its descriptor says",
    ),
    "layer-endless": (
        on_layer(lambda r: replace(r, endless=True)),
        BackendError,
        "of its descriptor",
    ),
    "layer-too-short": (
        on_layer(lambda r: replace(r, body=r.body[:-1])),
        BackendError,
        "its descriptor says",
    ),
    "layer-never-whole": (
        on_layer(lambda r: replace(r, cut=0)),
        BackendError,
        "broke off",
    ),
    "layer-hangs": (
        on_layer(lambda r: replace(r, hang=0)),
        BackendError,
        "no data for as long",
    ),
    "layer-html": (
        on_layer(lambda r: Reply(headers=(("Content-Type", "text/html"),), body=b"<html>")),
        BackendError,
        "its descriptor says",
    ),
    "layer-encoding": (
        on_layer(lambda r: r.with_header("Content-Encoding", "br")),
        BackendError,
        "content encoding 'br'",
    ),
    "layer-404": (on_layer(lambda r: NOT_FOUND), NotFound, "not found"),
    "layer-diff-id": (
        lambda asked, honest: honest,
        InvalidArgument,
        "its config says sha256:000",
    ),
}


@pytest.mark.parametrize("name", LIES)
async def test_a_lie_is_told_in_words_and_leaves_nothing(name, stores, store, liar):
    liar.add("demo/app", "1", image_of([LAYER, SMALL]))
    liar.rule, kind, words = LIES[name]
    if name == "layer-diff-id":
        liar.add("demo/app", "1", with_other_diff_id())
    with pytest.raises(PolypodError) as failed:
        await store.pull(f"{liar.address}/demo/app:1")
    assert words in str(failed.value)
    assert type(failed.value) is kind
    assert await store.list() == ()
    assert await stores.settled([]) == []
    # The store is whole: an honest registry has what it needs.
    liar.rule = lambda asked, honest: honest
    liar.add("demo/app", "2", IMAGE)
    image = await store.pull(f"{liar.address}/demo/app:2")
    assert image.id == CONFIG_DIGEST


def with_other_diff_id():
    """Return an image whose config promises other content of the large layer."""
    from support.images import digest_of
    from support.registry import Image

    config = json.loads(IMAGE.blobs[CONFIG_DIGEST])
    config["rootfs"]["diff_ids"][0] = "sha256:" + "0" * 64
    raw = json.dumps(config).encode()
    blobs = {digest: data for digest, data in IMAGE.blobs.items() if digest != CONFIG_DIGEST}
    manifest = {
        **MANIFEST,
        "config": {**MANIFEST["config"], "digest": digest_of(raw), "size": len(raw)},
    }
    return Image(json.dumps(manifest).encode(), IMAGE.media_type, {**blobs, digest_of(raw): raw})


async def test_no_error_shows_a_secret(store, liar, caplog):
    """I9: neither what was sent nor what a registry echoes."""
    from polypod.plugin.requests import Auth

    secrets = ("hunter2secret", "verysecret")
    auth = Auth(username="somebody", password="hunter2secret")
    liar.add("demo/app", "1", IMAGE)
    basic = ("WWW-Authenticate", 'Basic realm="r"')
    rules = (
        lambda a, h: Reply(401, (basic,), b"hunter2secret"),
        lambda a, h: Reply(307, (("Location", EVIL_URL),)),
        lambda a, h: Reply(307, (("Location", "http://u:verysecret@h.example/"),)),
        lambda a, h: h.with_header("Docker-Content-Digest", "token=verysecret"),
        lambda a, h: replace(h, raw=b"HTTP/1.1 200 token=verysecret\r\nA token=verysecret\r\n\r\n"),
    )
    with caplog.at_level("DEBUG"):
        for rule in rules:
            liar.rule = rule
            with pytest.raises(PolypodError) as failed:
                await store.pull(f"{liar.address}/demo/app:1", auth=auth)
            chain, shown = failed.value, ""
            while chain is not None:
                shown += f"{chain!r} {chain}"
                chain = chain.__cause__ or (
                    None if chain.__suppress_context__ else chain.__context__
                )
            assert not any(each in shown for each in secrets), shown
    assert not any(each in caplog.text for each in secrets)
