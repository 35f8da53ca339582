"""exec, attach and port-forward as a person types them: pipes, a terminal, exit codes."""

import contextlib
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

POLYPOD = str(Path(sys.executable).with_name("polypod"))
IMAGE = "localhost/demo:latest"


@pytest.fixture
async def web(server):
    """A pod whose container echoes its stdin."""
    await server.start().ready()
    script = "while read line; do echo got $line; done"
    done = server.run("run", "-d", "-i", "--name", "web", IMAGE, "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    return server


def piped(server, *words, text=""):
    """Run polypod with something on its stdin."""
    words = [POLYPOD, "--endpoint", server.endpoint, *words]
    return subprocess.run(words, input=text, capture_output=True, text=True, check=False)


class Terminal:
    """polypod on a terminal of its own."""

    def __init__(self, server, *words, rows=24, columns=80):
        self.said = b""
        self._pid, self._master = pty.fork()
        if self._pid == 0:
            os.execv(POLYPOD, [POLYPOD, "--endpoint", server.endpoint, *words])
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text):
        os.write(self._master, text)

    def until(self, text):
        deadline = time.monotonic() + 30
        while text not in self.said and time.monotonic() < deadline:
            try:
                piece = os.read(self._master, 4096)
            except OSError:
                break
            self.said += piece
        assert text in self.said, self.said

    def end(self):
        """Return the exit code."""
        with contextlib.suppress(OSError):
            while piece := os.read(self._master, 4096):
                self.said += piece
        os.close(self._master)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


def test_exec_passes_stdin_and_the_exit_code(web):
    script = "read line; echo got $line; echo bad >&2; exit 7"
    done = piped(web, "exec", "-i", "web", "sh", "-c", script, text="this\n")
    assert (done.stdout, done.stderr, done.returncode) == ("got this\n", "bad\n", 7)


def test_exec_of_no_program_says_so(web):
    done = piped(web, "exec", "web", "/no/such/program")
    assert done.returncode == 1
    assert "/no/such/program" in done.stderr


def test_exec_with_a_time_limit_or_as_json_collects(web):
    done = piped(web, "exec", "--json", "web", "sh", "-c", "echo out; exit 3")
    assert json.loads(done.stdout) == {"exit_code": 3, "stdout": "out\n", "stderr": ""}
    assert done.returncode == 3
    done = piped(web, "exec", "--timeout", "1", "web", "sleep", "1000")
    assert "DEADLINE_EXCEEDED" in done.stderr
    assert piped(web, "exec", "--timeout", "1", "-i", "web", "cat").returncode == 2


def test_a_terminal_needs_a_terminal(web):
    done = piped(web, "exec", "-it", "web", "sh")
    assert done.returncode == 2
    assert "no terminal" in done.stderr


def test_exec_on_a_terminal(web):
    terminal = Terminal(
        web, "exec", "-it", "web", "sh", "-c", "tty; read line; echo got $line; exit 4"
    )
    terminal.until(b"/dev/")
    terminal.type(b"this\r\n")
    terminal.until(b"got this")
    assert terminal.end() == 4


def test_attach_passes_stdin(web):
    attached = subprocess.Popen(
        [POLYPOD, "--endpoint", web.endpoint, "attach", "web"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    attached.stdin.write(b"this\n")
    attached.stdin.flush()
    assert attached.stdout.readline() == b"got this\n"
    web.run("stop", "-t", "0", "web")
    assert attached.stdout.read() == b""
    assert attached.wait(timeout=30) == 0
    attached.stdin.close()
    attached.stdout.close()


async def test_ctrl_p_ctrl_q_leaves_a_terminal(server):
    await server.start().ready()
    script = "while read line; do echo got $line; done"
    done = server.run("run", "-d", "-it", "--name", "shell", IMAGE, "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    terminal = Terminal(server, "attach", "shell")
    terminal.type(b"this\n")
    terminal.until(b"got this")
    terminal.type(b"\x10\x11")
    assert terminal.end() == 0
    assert "running" in server.run("ps").stdout


def test_port_forward_says_where_it_listens_and_what_failed(web):
    forwarding = subprocess.Popen(
        [POLYPOD, "--endpoint", web.endpoint, "port-forward", "web", ":80"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    local, _, remote = forwarding.stdout.readline().partition(" -> ")
    assert remote == "80\n"
    asked = subprocess.run(
        [sys.executable, "-c", ASK, local.rpartition(":")[2]], capture_output=True, check=True
    )
    assert asked.stdout == b""
    assert "port 80" in forwarding.stderr.readline()
    web.end()
    assert forwarding.wait(timeout=30) == 1
    assert "has ended" in forwarding.stderr.read()
    forwarding.stdout.close()
    forwarding.stderr.close()


ASK = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as sock:
    sys.stdout.buffer.write(sock.recv(100))
"""


@pytest.mark.parametrize("ports", [["x"], ["1:2:3"], ["70000"], ["80:"], ["80:0"]], ids=str)
def test_ports_that_are_none(web, ports):
    done = piped(web, "port-forward", "web", *ports)
    assert done.returncode == 2
    assert "port" in done.stderr
