"""The smaller pieces: cgroups that are removed, lines that are logged, flags, readiness."""

import argparse
import logging
import os

import grpc
import pytest

from polypod.api.interceptors import Interceptor, request_id
from polypod.boot import cgroups, journal, processes
from polypod.cli.main import build_parser
from polypod.cli.serving import loaded
from polypod.plugin.errors import FailedPrecondition, InvalidArgument


@pytest.fixture
def hierarchy(tmp_path):
    """A cgroup hierarchy as far as directories go, and the mountinfo that names it."""
    place = tmp_path / "cg"
    place.mkdir()
    info = tmp_path / "mountinfo"
    info.write_text(f"30 20 0:1 / {place} rw - cgroup2 cgroup2 rw\n40 20 0:2 / / rw - ext4 x rw\n")
    return place, info


async def test_an_empty_parent_is_removed_with_all_below_it(hierarchy):
    place, info = hierarchy
    (place / "ours" / "pod" / "main").mkdir(parents=True)
    (place / "theirs").mkdir()
    assert await cgroups.remove("/ours", info) == []
    assert os.listdir(place) == ["theirs"]


async def test_a_parent_that_cannot_be_removed_is_named(hierarchy, monkeypatch):
    place, info = hierarchy
    monkeypatch.setattr(cgroups, "TRIES", 1)
    (place / "ours").mkdir()
    (place / "ours" / "file").touch()
    assert await cgroups.remove("/ours", info) == [f"cgroup {place}/ours: Directory not empty"]


@pytest.mark.parametrize("parent", ["/", "/../etc", "/a/../.."])
async def test_a_parent_that_leads_out_removes_nothing(hierarchy, parent):
    place, info = hierarchy
    (place.parent / "etc").mkdir()
    assert await cgroups.remove(parent, info) == []
    assert (place.parent / "etc").exists()


def test_a_line_carries_the_request_it_belongs_to(capsys):
    before = logging.getLogger().handlers[:]
    try:
        journal.set_up("info")
        token = request_id.set("7")
        logging.getLogger("polypod.x").info("hello")
        request_id.reset(token)
        logging.getLogger("polypod.x").info("later")
    finally:
        logging.getLogger().handlers[:] = before
    first, second = capsys.readouterr().err.splitlines()
    assert "INFO polypod.x request=7 object=- hello" in first
    assert second.endswith("INFO polypod.x later")


def test_an_unknown_level_is_refused():
    with pytest.raises(InvalidArgument, match="debug, info"):
        journal.set_up("loud")


def test_flags_win_over_settings_and_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = build_parser().parse_args(
        ["serve", "--set", "server.root=/x", "--root", "r", "--listen", "unix:///s.sock"]
    )
    args.config = tmp_path / "c.toml"
    args.config.write_text("[server]\nstate = '/from/file'\n")
    server = loaded(args).server
    assert (server.root, server.state) == (str(tmp_path / "r"), "/from/file")
    assert server.listen == "unix:///s.sock"


def test_plugins_and_config_show_have_no_place_flags():
    assert isinstance(build_parser().parse_args(["plugins"]), argparse.Namespace)
    with pytest.raises(SystemExit):
        build_parser().parse_args(["plugins", "--root", "x"])


async def test_real_handlers_without_root_say_how_to_try_it(monkeypatch, tmp_path):
    from polypod.config import Config

    monkeypatch.setattr(processes.os, "geteuid", lambda: 1000)
    with pytest.raises(FailedPrecondition, match=r"handlers\.sim\.type=simulator"):
        await processes.open_processes(Config(), tmp_path)


class Context:
    async def abort(self, code, text):
        raise RuntimeError(code, text)


async def test_nothing_is_answered_until_the_server_is_ready():
    ready = []
    interceptor = Interceptor(lambda: bool(ready))

    async def version(_request, _context):
        return "answer"

    async def continuation(_details):
        return grpc.unary_unary_rpc_method_handler(version)

    class Details:
        method = "/runtime.v1.RuntimeService/Version"

    handler = await interceptor.intercept_service(continuation, Details)
    with pytest.raises(RuntimeError) as refused:
        await handler.unary_unary(object(), Context())
    assert refused.value.args[0] is grpc.StatusCode.UNAVAILABLE
    ready.append(True)
    assert await handler.unary_unary(object(), Context()) == "answer"
