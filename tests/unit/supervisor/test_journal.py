"""Where the three write what they have to say."""

import os
import subprocess
import sys

from polypod.supervisor import start

_WRITE = """
import os, sys
sys.path.insert(0, sys.argv[1])
from polypod.supervisor import journal
from polypod.supervisor.server import note
journal.use("keeper", os.open(sys.argv[2], os.O_RDONLY))
exec(sys.argv[3])
"""


def write(directory, code):
    subprocess.run(
        [sys.executable, "-c", _WRITE, start.code_root(), str(directory), code], check=False
    )
    return (directory / "processes.log").read_text().splitlines()


def test_lines_carry_time_and_role(tmp_path):
    lines = write(tmp_path, "note('one'); note('two\\nthree'); os.system('echo four >&2')")
    assert [line.split(" ", 2)[2] for line in lines[:3]] == ["one", "two", "three"]
    assert all(line.split()[1].startswith("keeper[") for line in lines[:3])
    assert lines[3] == "four"


def test_uncaught_exceptions_are_there(tmp_path):
    text = "\n".join(write(tmp_path, "1 / 0"))
    assert "ZeroDivisionError" in text


def test_a_full_file_is_put_aside_once(tmp_path):
    log = tmp_path / "processes.log"
    log.write_bytes(b"x" * (1024 * 1024 + 1))
    lines = write(tmp_path, "note('a'); note('b')")
    assert [line.split()[-1] for line in lines] == ["a", "b"]
    assert os.stat(tmp_path / "processes.log.1").st_size == 1024 * 1024 + 1


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_text("")
    (tmp_path / "processes.log").symlink_to(tmp_path / "elsewhere")
    write(tmp_path, "note('a')")
    assert (tmp_path / "elsewhere").read_text() == ""
