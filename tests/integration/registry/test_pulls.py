"""Pulls from an honest registry: what is chosen, named, fetched, joined and let go."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from support.images import image_of, index_of, layer_of, noise
from support.lying_registry import LyingRegistry, Reply
from support.registry import push

from polypod.plugin.errors import BackendError, InvalidArgument, NotFound, Unavailable
from polypod.plugin.rootfs import RootfsForm

pytestmark = pytest.mark.needs_root

BIG = layer_of({"big": noise(5_000_000)})
BASE = layer_of({"base": b"base"})
IMAGE = image_of([BASE, BIG], config={"Cmd": ["/base"]})
BIG_DIGEST = json.loads(IMAGE.manifest)["layers"][1]["digest"]
AMD64 = {"os": "linux", "architecture": "amd64"}


@pytest.mark.needs_docker_registry
@pytest.mark.parametrize("kind", ["", "gzip", "zstd", "docker"])
async def test_pull_takes_every_kind_of_layer(kind, stores, store, docker_registry):
    made = image_of([BASE, layer_of({"own": kind.encode()})], kind=kind)
    digest = push(docker_registry.address, f"kinds/k{kind}", "1", made)
    name = f"{docker_registry.address}/kinds/k{kind}"
    image = await store.pull(f"{name}:1")
    assert image.repo_tags == (f"{name}:1",)
    assert image.repo_digests == (f"{name}@{digest}",)
    assert image.size_bytes == len(made.manifest) + sum(map(len, made.blobs.values()))
    rootfs = await store.prepare("c" * 64, image.id, RootfsForm.DIRECTORY)
    assert (rootfs.path / "own").read_bytes() == kind.encode()
    assert (rootfs.path / "base").read_bytes() == b"base"
    await store.release("c" * 64)


@pytest.mark.needs_docker_registry
@pytest.mark.parametrize("docker", [False, True], ids=["oci", "docker"])
async def test_pull_of_an_index_takes_the_image_for_this_host(docker, store, docker_registry):
    kind = "docker" if docker else "gzip"
    mine = image_of([layer_of({"mine": b""})], kind=kind)
    other = image_of([layer_of({"other": b""})], kind=kind, platform=("linux", "s390x"))
    index = index_of(
        [(other, {"os": "linux", "architecture": "s390x"}), (mine, AMD64)], docker=docker
    )
    digest = push(docker_registry.address, f"index/{kind}", "1", index)
    image = await store.pull(f"{docker_registry.address}/index/{kind}:1")
    assert image.id == json.loads(mine.manifest)["config"]["digest"]
    assert image.manifest_digest == mine.digest
    # What can be pulled again, on any host, is the index.
    assert image.repo_digests == (f"{docker_registry.address}/index/{kind}@{digest}",)
    again = await store.pull(f"{docker_registry.address}/index/{kind}@{digest}")
    assert again.id == image.id


async def test_pull_without_an_image_for_this_host_lists_what_there_is(stores, store, liar):
    other = image_of([BASE], platform=("linux", "s390x"))
    liar.add("demo/app", "1", index_of([(other, {"os": "linux", "architecture": "s390x"})]))
    with pytest.raises(NotFound, match="linux/s390x"):
        await store.pull(f"{liar.address}/demo/app:1")
    assert await stores.settled([]) == []


async def test_pull_by_digest_gives_no_tag_and_another_digest_is_not_found(store, liar):
    digest = liar.add("demo/app", "1", IMAGE)
    image = await store.pull(f"{liar.address}/demo/app@{digest}")
    assert (image.repo_tags, image.repo_digests) == ((), (f"{liar.address}/demo/app@{digest}",))
    with pytest.raises(NotFound, match="sha256:0000"):
        await store.pull(f"{liar.address}/demo/app@sha256:{'0' * 64}")


async def test_a_second_pull_asks_for_the_tag_and_fetches_nothing(store, liar):
    liar.add("demo/app", "1", IMAGE)
    first = await store.pull(f"{liar.address}/demo/app:1")
    liar.seen.clear()
    assert await store.pull(f"{liar.address}/demo/app:1") == first
    assert [(each.method, each.path) for each in liar.seen] == [
        ("HEAD", "/v2/demo/app/manifests/1")
    ]


async def test_a_moved_tag_moves_and_shared_layers_stay(store, liar):
    liar.add("demo/app", "1", IMAGE)
    old = await store.pull(f"{liar.address}/demo/app:1")
    liar.add("demo/app", "1", image_of([BASE, BIG, layer_of({"new": b""})]))
    liar.seen.clear()
    new = await store.pull(f"{liar.address}/demo/app:1")
    assert new.id != old.id
    assert new.repo_tags == (f"{liar.address}/demo/app:1",)
    assert (await store.find(old.id)).repo_tags == ()
    assert liar.count("GET", BIG_DIGEST) == 0


async def test_a_removed_image_is_asked_for_anew(stores, store, liar):
    liar.add("demo/app", "1", IMAGE)
    image = await store.pull(f"{liar.address}/demo/app:1")
    await store.remove(image.id)
    assert await stores.settled([]) == []
    assert (await store.pull(f"{liar.address}/demo/app:1")).id == image.id


async def test_progress_ends_with_what_was_promised(store, liar):
    liar.add("demo/app", "1", IMAGE)
    steps = []
    await store.pull(f"{liar.address}/demo/app:1", progress=steps.append)
    big = [each for each in steps if each.what == BIG_DIGEST]
    stages = list(dict.fromkeys(each.stage for each in big))
    assert stages == ["downloading", "downloaded", "unpacking", "unpacked"]
    done = [each.done_bytes for each in big if each.stage == "downloading"]
    assert done == sorted(done)
    assert done[-1] == big[0].total_bytes
    assert steps[-1].stage == "done"


async def test_an_image_made_here_is_found_and_no_registry_is_asked(store):
    with pytest.raises(NotFound, match="made on this host"):
        await store.pull("localhost/demo")


# Broken transfers


async def test_a_broken_transfer_goes_on_where_it_stopped(store, liar):
    liar.add("demo/app", "1", IMAGE)
    size = len(IMAGE.blobs[BIG_DIGEST])
    offsets = []

    def rule(asked, honest):
        if BIG_DIGEST not in asked.path:
            return honest
        offsets.append(asked.offset)
        return replace(honest, cut=1_500_000)

    liar.rule = rule
    await store.pull(f"{liar.address}/demo/app:1")
    assert offsets[0] == 0
    assert offsets == sorted(set(offsets))
    assert size - offsets[-1] <= 1_500_000
    # What was on its way when the connection broke may be lost, but not the whole of it.
    assert 4 <= len(offsets) <= 8


async def test_a_registry_that_ignores_ranges_is_read_again_from_the_start(store, liar):
    liar.add("demo/app", "1", IMAGE)
    asked_for = []

    def rule(asked, honest):
        if BIG_DIGEST not in asked.path:
            return honest
        asked_for.append(asked.offset)
        whole = replace(honest, status=200, body=IMAGE.blobs[BIG_DIGEST])
        return whole if len(asked_for) > 1 else replace(whole, cut=2_000_000)

    liar.rule = rule
    assert (await store.pull(f"{liar.address}/demo/app:1")).size_bytes > 5_000_000
    assert len(asked_for) == 2


async def test_halves_that_do_not_fit_are_fetched_again_in_one(store, liar):
    liar.add("demo/app", "1", IMAGE)
    turns = []

    def rule(asked, honest):
        if BIG_DIGEST not in asked.path:
            return honest
        turns.append(asked.offset)
        if len(turns) == 1:
            return replace(honest, body=bytes(len(honest.body)), cut=2_000_000)
        return honest

    liar.rule = rule
    await store.pull(f"{liar.address}/demo/app:1")
    assert [bool(each) for each in turns] == [False, True, False]


async def test_a_wrong_range_is_refused(stores, store, liar):
    liar.add("demo/app", "1", IMAGE)

    def rule(asked, honest):
        if BIG_DIGEST not in asked.path:
            return honest
        if asked.offset:
            return honest.with_header("Content-Range", "bytes 0-9/10")
        return replace(honest, cut=2_000_000)

    liar.rule = rule
    with pytest.raises(BackendError, match="range 'bytes 0-9/10'"):
        await store.pull(f"{liar.address}/demo/app:1")
    assert await stores.settled([]) == []


async def test_a_slow_transfer_that_moves_goes_on(store, liar):
    """I12: pieces each within the time-out, the whole of it far beyond."""
    small = image_of([layer_of({"a": noise(2000)})])
    liar.add("demo/app", "1", small)
    liar.rule = lambda asked, honest: (
        replace(honest, piece=300, pause_s=0.3) if asked.is_blob else honest
    )
    assert await store.pull(f"{liar.address}/demo/app:1")


@pytest.mark.parametrize("status", [429, 503])
async def test_a_busy_registry_is_asked_again_after_what_it_says(status, store, liar):
    liar.add("demo/app", "1", IMAGE)
    answers = []

    def rule(asked, honest):
        answers.append(asked)
        busy = Reply(status, (("Retry-After", "1"),))
        return busy if len(answers) == 1 else honest

    liar.rule = rule
    loop = asyncio.get_running_loop()
    begin = loop.time()
    await store.pull(f"{liar.address}/demo/app:1")
    assert loop.time() - begin >= 1


async def test_a_refusal_is_shown_by_its_code_alone(store, liar):
    body = b'{"errors":[{"code":"TOOMANYREQUESTS","message":"token abcdefgh of me"}]}'
    liar.rule = lambda asked, honest: Reply(403, (), body)
    with pytest.raises(BackendError, match="status 403 TOOMANYREQUESTS") as failed:
        await store.pull(f"{liar.address}/demo/app:1")
    assert "abcdefgh" not in str(failed.value)


async def test_a_refusal_that_never_ends_is_not_waited_for(store, liar):
    liar.rule = lambda asked, honest: Reply(404, (), b"x" * 70_000, endless=True)
    with pytest.raises(NotFound):
        await store.pull(f"{liar.address}/demo/app:1")


# Equal pulls


async def _held(liar):
    """Hold the big layer back until an event is set."""
    import threading

    go = threading.Event()

    def rule(asked, honest):
        if BIG_DIGEST in asked.path:
            go.wait(20)
        return honest

    liar.rule = rule
    return go


async def _asked(liar, part):
    for _ in range(1000):
        if liar.count("GET", part):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{part} was never asked for")


async def test_equal_pulls_are_one_and_a_cancelled_caller_takes_only_its_share(store, liar):
    """I11."""
    liar.add("demo/app", "1", IMAGE)
    go = await _held(liar)
    pulls = [asyncio.create_task(store.pull(f"{liar.address}/demo/app:1")) for _ in range(5)]
    await _asked(liar, BIG_DIGEST)
    pulls[0].cancel()
    pulls[3].cancel()
    await asyncio.wait(pulls[:1])
    go.set()
    done = await asyncio.gather(*pulls, return_exceptions=True)
    left = [isinstance(each, asyncio.CancelledError) for each in done]
    assert left == [True, False, False, True, False]
    assert len({each.id for each in (done[1], done[2], done[4])}) == 1
    assert liar.count("GET", "/manifests/1") == 1
    assert liar.count("GET", BIG_DIGEST) == 1


async def test_the_last_cancelled_caller_ends_the_pull_and_nothing_stays(stores, store, liar):
    liar.add("demo/app", "1", IMAGE)
    go = await _held(liar)
    pulls = [asyncio.create_task(store.pull(f"{liar.address}/demo/app:1")) for _ in range(3)]
    await _asked(liar, BIG_DIGEST)
    for each in pulls:
        each.cancel()
    await asyncio.wait(pulls)
    assert all(each.cancelled() for each in pulls)
    go.set()
    assert await stores.settled([]) == []
    assert await store.list() == ()
    assert await store.pull(f"{liar.address}/demo/app:1")


async def test_two_images_share_a_layer_and_one_cancelled_does_not_harm_the_other(store, liar):
    liar.add("demo/one", "1", IMAGE)
    liar.add("demo/two", "1", image_of([BASE, BIG, layer_of({"two": b""})]))
    go = await _held(liar)
    one = asyncio.create_task(store.pull(f"{liar.address}/demo/one:1"))
    await _asked(liar, BIG_DIGEST)
    two = asyncio.create_task(store.pull(f"{liar.address}/demo/two:1"))
    await _asked(liar, "/v2/demo/two/blobs")
    one.cancel()
    await asyncio.wait({one})
    go.set()
    assert (await two).size_bytes > 5_000_000


async def test_closing_the_store_ends_pulls(stores, liar):
    store = await stores.open()
    liar.add("demo/app", "1", IMAGE)
    go = await _held(liar)
    pull = asyncio.create_task(store.pull(f"{liar.address}/demo/app:1"))
    await _asked(liar, BIG_DIGEST)
    await store.close()
    with pytest.raises(Unavailable):
        await pull
    go.set()
    await stores.open()
    assert await stores.settled([]) == []


# Mirrors


async def test_a_mirror_serves_and_the_name_stays(stores, store, liar):
    with LyingRegistry() as mirror:
        digest = mirror.add("library/app", "1", IMAGE)
        stores.rule(
            "docker.io",
            f'server = "http://{liar.address}"\n[host."http://{mirror.address}"]\n',
        )
        image = await store.pull("app:1")
        assert image.repo_tags == ("docker.io/library/app:1",)
        assert image.repo_digests == (f"docker.io/library/app@{digest}",)
        assert {each.query.get("ns") for each in mirror.seen} == {"docker.io"}
        assert liar.seen == []


async def test_rules_are_read_at_each_pull(stores, store, liar):
    liar.add("app", "1", IMAGE)
    stores.rule("r.example", 'server = "http://127.0.0.1:9"\n')
    with pytest.raises(BackendError, match=r"^RegistryUnavailable: r\.example/app:1: "):
        await store.pull("r.example/app:1")
    stores.rule("r.example", f'server = "http://{liar.address}"\n')
    assert (await store.pull("r.example/app:1")).repo_tags == ("r.example/app:1",)
    stores.rule("r.example", "server = 7\n")
    with pytest.raises(InvalidArgument, match=r"hosts\.toml: server"):
        await store.pull("r.example/app:1")


@pytest.mark.parametrize("fault", ["missing", "lies", "busy", "gone"])
async def test_behind_a_bad_mirror_the_registry_itself_is_asked(fault, stores, store, liar):
    liar.add("app", "1", IMAGE)
    with LyingRegistry() as mirror:
        mirror.add("app", "1", IMAGE)
        mirror.rule = {
            "missing": lambda a, h: Reply(404),
            "lies": lambda a, h: replace(h, body=h.body[:-1] + b"?") if a.is_blob else h,
            "busy": lambda a, h: Reply(503),
            "gone": lambda a, h: replace(h, raw=b""),
        }[fault]
        stores.rule(
            "r.example",
            f'server = "http://{liar.address}"\n[host."http://{mirror.address}"]\n',
        )
        image = await store.pull("r.example/app:1")
        assert image.repo_tags == ("r.example/app:1",)
        assert mirror.seen
        assert liar.seen


async def test_a_mirror_without_resolve_is_asked_for_digests_alone(stores, store, liar):
    liar.add("app", "1", IMAGE)
    with LyingRegistry() as mirror:
        mirror.add("app", "1", IMAGE)
        stores.rule(
            "r.example",
            f'server = "http://{liar.address}"\n[host."http://{mirror.address}"]\n'
            'capabilities = ["pull"]\n',
        )
        await store.pull("r.example/app:1")
        assert mirror.count("GET", "/manifests/") == 0
        assert mirror.count("GET", "/blobs/") == 3
        assert liar.count("GET", "/blobs/") == 0


async def test_a_path_can_be_overridden_and_headers_are_sent(stores, store, liar):
    liar.add("app", "1", IMAGE)

    def rule(asked, honest):
        if not asked.path.startswith("/proxy/"):
            return Reply(404)
        return liar._honest(replace(asked, path=asked.path.replace("/proxy/", "/v2/", 1)))

    liar.rule = rule
    stores.rule(
        "r.example",
        f'[host."http://{liar.address}/proxy"]\noverride_path = true\n'
        f'[host."http://{liar.address}/proxy".header]\nx-team = ["blue", "red"]\n',
    )
    await store.pull("r.example/app:1")
    assert {each.headers["x-team"] for each in liar.seen} == {"blue, red"}


# TLS


async def test_tls_is_checked_unless_the_rule_says_otherwise(stores, store, certificate):
    with LyingRegistry(certificate) as registry:
        registry.add("app", "1", IMAGE)
        stores.rule("r.example", f'server = "https://{registry.address}"\n')
        with pytest.raises(BackendError, match=r"^RegistryUnavailable: .*TLS"):
            await store.pull("r.example/app:1")
        text = f'server = "https://{registry.address}"\nca = "{certificate[0]}"\n'
        stores.rule("r.example", text)
        await store.pull("r.example/app:1")
        stores.rule("s.example", f'server = "https://{registry.address}"\nskip_verify = true\n')
        await store.pull("s.example/app:1")


async def test_no_redirect_leads_from_https_to_http(stores, store, liar, certificate):
    with LyingRegistry(certificate) as registry:
        registry.add("app", "1", IMAGE)
        registry.rule = lambda a, h: (
            Reply(307, (("Location", f"http://{liar.address}{a.path}"),)) if a.is_blob else h
        )
        stores.rule(
            "r.example", f'server = "https://{registry.address}"\nca = "{certificate[0]}"\n'
        )
        with pytest.raises(BackendError, match="from https to http"):
            await store.pull("r.example/app:1")
        assert liar.seen == []
