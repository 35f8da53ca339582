"""User namespaces, and the namespaces that they own: made together with a child that is born in them.

Nobody can leave a user namespace again, so we never enter one ourselves. The child waits until its
maps are written, from outside, and then does inside what only root of that namespace may do.
"""

from __future__ import annotations

import errno
import os

from polypod.supervisor.kernel import credentials, files, namespace, process
from polypod.supervisor.server import Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    Message = dict[str, Any]
    Maps = dict[str, list[list[int]]]

_RANGES_MAX = 340
"""user_namespaces(7)."""
_FILES = {"uids": "uid_map", "gids": "gid_map"}
_READY = b"r"


def read_maps(message: Message) -> Maps | None:
    """Return the maps of a request, ``[[inside, outside, length], …]`` for users and for groups.

    Raises:
        Refusal: they are not of that form.
    """
    maps = message.get("ids")
    if maps is None:
        return None
    good = isinstance(maps, dict) and set(maps) == set(_FILES)
    if not good or not all(_is_map(ranges) for ranges in maps.values()):
        raise Refusal("InvalidArgument", f"{message.get('op')}: ids must map users and groups")
    found: Maps = maps
    return found


def _is_map(ranges: object) -> bool:
    if not isinstance(ranges, list) or not 0 < len(ranges) <= _RANGES_MAX:
        return False
    return all(
        isinstance(each, list) and len(each) == 3 and all(type(number) is int for number in each)
        for each in ranges
    )


def make(
    proc: int, maps: Maps, inside: Callable[[int], None], kinds: list[str] | None = None
) -> tuple[dict[str, int], int, int]:
    """Make a user namespace and others that it owns.

    Args:
        proc: a procfs.
        maps: of the user namespace.
        inside: what the child does there as root of all of them; called with a descriptor for `say_ready`.
            If it returns, the child ends when we have what we want.
        kinds: of the others; None = there are none, and the child need not be anybody. With ``pid`` the child
            is the first in it, and has a mount namespace, too.

    Returns:
        Descriptors of the namespaces by kind, the child's pid and its pidfd.

    Raises:
        OSError: the kernel refused; nothing is left.
    """
    flags = process.CLONE_PARENT | process.CLONE_NEWUSER
    if "pid" in (kinds or ()):
        flags |= process.CLONE_NEWPID | process.CLONE_NEWNS
    pipes: list[int] = []
    pidfd = -1
    fds: dict[str, int] = {}
    try:
        pipes += os.pipe2(os.O_CLOEXEC)
        pipes += os.pipe2(os.O_CLOEXEC)
        gate, go, ready, done = pipes
        pid, pidfd = process.clone3(flags)
        if pid == 0:
            _live((proc, gate, done), kinds, inside)
        for fd in (gate, done):
            os.close(fd)
            pipes.remove(fd)
        _write_maps(proc, pid, maps)
        os.write(go, b"g")
        _expect_ready(ready)
        for kind in ("user", *(kinds or ())):
            name = f"{pid}/ns/{namespace.FILES[kind]}"
            fds[kind] = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    except BaseException:
        if pidfd >= 0:
            _kill(pidfd)
        for fd in fds.values():
            os.close(fd)
        raise
    finally:
        for fd in pipes:
            os.close(fd)
    return fds, pid, pidfd


def say_ready(done: int) -> None:
    """Tell the maker that all is done inside."""
    os.write(done, _READY)


def _live(
    kept: tuple[int, int, int], kinds: list[str] | None, inside: Callable[[int], None]
) -> NoReturn:
    """The child's life."""
    _proc, gate, done = kept
    try:
        files.close_all_but(list(kept))
        if os.read(gate, 1):
            if kinds is not None:
                credentials.become_root()
                _make_others(kinds)
            inside(done)
            os.read(gate, 1)
    except OSError as error:
        os.write(done, f"{error.errno or 0} {error.strerror or error}".encode())
    finally:
        os._exit(0)


def _make_others(kinds: list[str]) -> None:
    """By root of the user namespace: what is made belongs to who makes it, such as the root of an mqueue."""
    flags = 0
    for kind in kinds:
        if kind != "pid":
            flags |= namespace.FLAGS[kind]
    namespace.unshare(flags)


def _write_maps(proc: int, pid: int, maps: Maps) -> None:
    for name, ranges in maps.items():
        text = "".join(f"{inside} {outside} {size}\n" for inside, outside, size in ranges)
        fd = os.open(f"{pid}/{_FILES[name]}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
        try:
            os.write(fd, text.encode())
        except OSError as error:
            said = f"user namespace: the kernel refuses the mapping of {name} {ranges}"
            raise OSError(error.errno, f"{said}: {os.strerror(error.errno or 0)}") from error
        finally:
            os.close(fd)


def _expect_ready(ready: int) -> None:
    said = os.read(ready, 4096)
    if said == _READY:
        return
    number, _, words = said.decode(errors="replace").partition(" ")
    if not words:
        raise OSError(errno.ECANCELED, "the first process of a user namespace was killed")
    raise OSError(int(number), words)


def _kill(pidfd: int) -> None:
    try:
        process.pidfd_send_signal(pidfd, 9)
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)
