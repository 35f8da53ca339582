"""Standard streams, terminals, the working directory and execve."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import struct
import termios

from polypod.plan import operations
from polypod.supervisor.kernel import mounts
from polypod.supervisor.steps.context import Context

# asm-generic/ioctls.h
_TIOCGPTPEER = 0x5441
_TIOCSPTLCK = 0x40045431
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def start_session(_op: operations.StartSession, _context: Context) -> None:
    """Signals and terminals of the launcher are none of ours."""
    os.setsid()


def use_stdio(op: operations.UseStdio, context: Context) -> None:
    """Put sources on 0, 1, 2."""
    for number, source in enumerate((op.stdin, op.stdout, op.stderr)):
        os.dup2(context.source(source) if source else context.null, number)


def open_terminal(op: operations.OpenTerminal, context: Context) -> None:
    """Open a pty of the container's own devpts; the slave by TIOCGPTPEER, never by name (E4)."""
    master = context.open_beneath("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY)
    if op.width and op.height:
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", op.height, op.width, 0, 0))
    os.fchown(slave, op.uid, -1)
    if op.bind_console:
        _bind_console(slave, context)
    _send_master(master, context.source(op.console))
    os.close(master)
    for number in (0, 1, 2):
        os.dup2(slave, number)
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    os.close(slave)


def _bind_console(slave: int, context: Context) -> None:
    target = context.make_file("/dev/console")
    copy = mounts.open_tree(slave, "", mounts.OPEN_TREE_CLONE | mounts.AT_EMPTY_PATH)
    mounts.move_mount(copy, target)
    os.close(copy)
    os.close(target)


def _send_master(master: int, console: int) -> None:
    with socket.socket(fileno=os.dup(console)) as sock:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [master]))
        sock.sendmsg([b"pty"], [rights])


def change_directory(op: operations.ChangeDirectory, _context: Context) -> None:
    """Enter the directory and prove where it is: a leaked descriptor may point outside (E2)."""
    os.chdir(op.path)
    here = os.getcwd()
    if not here.startswith("/"):
        raise OSError(
            errno.EACCES, f"working directory {op.path} lies outside the container's root"
        )


def execute(op: operations.Execute, _context: Context) -> None:
    """Execute; raises OSError in the field's words if that fails."""
    env = dict(item.partition("=")[::2] for item in op.env)
    name = op.args[0]
    if "/" in name or not op.search:
        _execute(name, op.args, env, name)
    denied = False
    for directory in env.get("PATH", _DEFAULT_PATH).split(":"):
        path = os.path.join(directory or ".", name)
        try:
            os.execve(path, op.args, env)
        except PermissionError:
            denied = True
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise OSError(error.errno, f'exec: "{path}": {_words(error)}') from error
    if denied:
        raise OSError(errno.EACCES, f'exec: "{name}": permission denied')
    raise OSError(errno.ENOENT, f'exec: "{name}": executable file not found in $PATH')


def _execute(path: str, args: list[str], env: dict[str, str], shown: str) -> None:
    try:
        os.execve(path, args, env)
    except OSError as error:
        raise OSError(error.errno, f'exec: "{shown}": {_words(error)}') from error


def _words(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
