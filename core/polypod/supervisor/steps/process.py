"""The process itself: session, descriptors, working directory, execve."""

from __future__ import annotations

import errno
import os

from polypod.plan import operations
from polypod.supervisor.kernel import credentials
from polypod.supervisor.steps.context import Context

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def start_session(_op: operations.StartSession, _context: Context) -> None:
    """Signals, terminals and keys of the launcher are none of ours."""
    os.setsid()
    try:
        credentials.join_new_session_keyring()
    except OSError as error:
        # A kernel without keyrings has none to share.
        if error.errno != errno.ENOSYS:
            raise


def close_descriptors(_op: operations.CloseDescriptors, context: Context) -> None:
    """From here no ``/proc/self/fd/N`` leads anywhere (E2)."""
    context.close_others()


def change_directory(op: operations.ChangeDirectory, _context: Context) -> None:
    """Enter the directory and prove where it is: a leaked descriptor may point outside (E2)."""
    try:
        os.chdir(op.path)
    except OSError as error:
        text = f"working directory {op.path}: {_words(error)}"
        raise OSError(error.errno, text) from error
    here = os.getcwd()
    if not here.startswith("/"):
        text = f"working directory {op.path} lies outside the container's root"
        raise OSError(errno.EACCES, text)


def execute(op: operations.Execute, _context: Context) -> None:
    """Execute; raises OSError in the field's words if that fails."""
    args = [_raw(item) for item in op.args]
    env = dict(_raw(item).partition(b"=")[::2] for item in op.env if not item.startswith("="))
    name = args[0]
    if b"/" in name or not op.search:
        _try(name, args, env, op.args[0])
    denied = False
    for directory in env.get(b"PATH", _DEFAULT_PATH.encode()).split(b":"):
        try:
            os.execve(os.path.join(directory or b".", name), args, env)
        except PermissionError:
            denied = True
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise OSError(error.errno, f'exec: "{op.args[0]}": {_words(error)}') from error
    if denied:
        raise OSError(errno.EACCES, f'exec: "{op.args[0]}": permission denied')
    text = f'exec: "{op.args[0]}": executable file not found in $PATH'
    raise OSError(errno.ENOENT, text)


def _try(path: bytes, args: list[bytes], env: dict[bytes, bytes], shown: str) -> None:
    try:
        os.execve(path, args, env)
    except OSError as error:
        raise OSError(error.errno, f'exec: "{shown}": {_words(error)}') from error


def _raw(text: str) -> bytes:
    """The plan's bytes, whatever this interpreter's file system encoding is."""
    return text.encode("utf-8", "surrogateescape")


def _words(error: OSError) -> str:
    return os.strerror(error.errno or 0).lower()
