"""Log files are opened beneath a directory, whatever the path says."""

import os
import stat

import pytest

from polypod.plugin.errors import InvalidArgument
from polypod.processes.log_paths import open_log


@pytest.fixture
def base(tmp_path):
    made = tmp_path / "logs"
    made.mkdir()
    return made


def test_open_log_makes_directories_and_appends(base):
    path = base / "pod" / "c" / "0.log"
    for text in (b"a", b"b"):
        fd = open_log("c", path, base)
        os.write(fd, text)
        os.close(fd)
    assert path.read_bytes() == b"ab"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755


def test_open_log_makes_the_base(tmp_path):
    os.close(open_log("c", tmp_path / "new" / "x.log", tmp_path / "new"))
    assert (tmp_path / "new" / "x.log").exists()


@pytest.mark.parametrize("path", ["../out", "a/../../out", "..", "."])
def test_open_log_refuses_to_leave(base, path):
    with pytest.raises(InvalidArgument, match="container c"):
        open_log("c", base / path, base)
    assert not (base.parent / "out").exists()


def test_open_log_refuses_a_path_elsewhere(base, tmp_path):
    with pytest.raises(InvalidArgument, match="not below"):
        open_log("c", tmp_path / "other" / "x", base)


@pytest.mark.parametrize("where", ["last", "middle", "dangling"])
def test_open_log_refuses_links(base, tmp_path, where):
    decoy = tmp_path / "decoy"
    decoy.mkdir()
    (decoy / "file").write_text("secret")
    path = base / "d" / "0.log"
    if where == "middle":
        (base / "d").symlink_to(decoy)
    else:
        (base / "d").mkdir()
        path.symlink_to(decoy / ("file" if where == "last" else "missing"))
    with pytest.raises(InvalidArgument, match="link"):
        open_log("c", path, base)
    assert os.listdir(decoy) == ["file"]
    assert (decoy / "file").read_text() == "secret"


@pytest.mark.parametrize("kind", ["fifo", "directory", "file in the way"])
def test_open_log_refuses_what_is_no_file(base, kind):
    path = base / "d" / "0.log"
    if kind == "file in the way":
        (base / "d").write_text("")
    else:
        (base / "d").mkdir()
        os.mkfifo(path) if kind == "fifo" else path.mkdir()
    with pytest.raises(InvalidArgument):
        open_log("c", path, base)
