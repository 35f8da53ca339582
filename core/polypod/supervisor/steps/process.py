"""The process itself: session, descriptors, working directory, execve."""

from __future__ import annotations

import errno
import os

from polypod.plan import operations
from polypod.supervisor.kernel import credentials
from polypod.supervisor.kernel import execute as execve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from polypod.supervisor.steps.context import Context

_DEFAULT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


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


class Program:
    """A plan's last operation, prepared before the clone."""

    __slots__ = ("paths", "searches", "shown", "vectors")

    def __init__(self, op: operations.Execute) -> None:
        args = [_raw(item) for item in op.args]
        if not args or any(b"\0" in item for item in args):
            raise OSError(errno.EINVAL, "exec: no arguments, or a NUL in one")
        env = dict(_raw(item).partition(b"=")[::2] for item in op.env if not item.startswith("="))
        self.shown = f'exec: "{op.args[0]}"'
        self.searches = op.search and b"/" not in args[0]
        self.paths = [args[0]]
        if self.searches:
            path = env.get(b"PATH", _DEFAULT_PATH)
            self.paths = [os.path.join(item or b".", args[0]) for item in path.split(b":")]
        self.vectors = execve.Vectors(args, [b"%b=%b" % pair for pair in env.items()])


def execute(_op: operations.Execute, context: Context) -> None:
    """Execute; raises OSError in the field's words if that fails.

    Looks like execvp(3): what may not be executed is passed over, and remembered.
    """
    program = context.program
    denied = False
    for path in program.paths:
        number = program.vectors.execute(path)
        if program.searches and number == errno.EACCES:
            denied = True
        elif not program.searches or number not in (errno.ENOENT, errno.ENOTDIR):
            raise OSError(number, f"{program.shown}: {os.strerror(number).lower()}")
    if denied:
        raise OSError(errno.EACCES, f"{program.shown}: permission denied")
    raise OSError(errno.ENOENT, f"{program.shown}: executable file not found in $PATH")


def _raw(text: str) -> bytes:
    """The plan's bytes, whatever this interpreter's file system encoding is."""
    return text.encode("utf-8", "surrogateescape")


def _words(error: OSError) -> str:
    return os.strerror(error.errno or 0).lower()
