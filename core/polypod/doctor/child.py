"""What is tried in a process of its own: ``python -m polypod.doctor.child links | idmap``.

It makes namespaces for itself, so that whatever it makes is gone with it. Prints nothing if it worked, else
one line that says what did not.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
import sys

TIMEOUT_S = 10.0
_NEWUSER, _NEWNET, _NEWNS = 0x10000000, 0x40000000, 0x00020000
_FSOPEN, _FSCONFIG, _FSMOUNT, _MOUNT_SETATTR = 430, 431, 432, 442
_FSCONFIG_CMD_CREATE = 6
_AT_EMPTY_PATH, _MOUNT_ATTR_IDMAP = 0x1000, 0x00100000
_RTM_NEWLINK, _NLM_REQUEST_CREATE_ACK = 16, 0x1 | 0x4 | 0x400 | 0x200
_IFLA_LINKINFO, _IFLA_INFO_KIND = 18, 1


def outcome(probe: str) -> str:
    """Run a probe; return ``""`` if it worked, else what did not."""
    words = [sys.executable, "-m", "polypod.doctor.child", probe]
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {TIMEOUT_S:g} s"
    if done.returncode == 0:
        return ""
    return (
        (done.stdout or done.stderr).strip().splitlines()[-1] if done.stdout or done.stderr else "?"
    )


def links() -> None:
    """Make a bridge and a veth pair in a network namespace of our own."""
    _check("unshare(CLONE_NEWNET)", ctypes.CDLL(None, use_errno=True).unshare(_NEWNET))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        for kind in ("bridge", "veth"):
            sock.send(new_link(kind))
            number = struct.unpack_from("i", sock.recv(65536), 16)[0]
            if number:
                raise OSError(-number, f"a link of kind {kind}: {os.strerror(-number)}")


def new_link(kind: str) -> bytes:
    """Return an RTM_NEWLINK request for a link of a kind, named by the kernel."""
    body = bytes(16) + _attribute(_IFLA_LINKINFO, _attribute(_IFLA_INFO_KIND, kind.encode()))
    return struct.pack("IHHII", 16 + len(body), _RTM_NEWLINK, _NLM_REQUEST_CREATE_ACK, 1, 0) + body


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def idmap() -> None:
    """Map the ids of a detached tmpfs by a user namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    context = _check("fsopen(tmpfs)", libc.syscall(_FSOPEN, b"tmpfs", 0))
    created = libc.syscall(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
    _check("fsconfig(CREATE)", created)
    mount = _check("fsmount", libc.syscall(_FSMOUNT, context, 0, 0))
    namespace = _user_namespace(libc)
    attributes = struct.pack("QQQQ", _MOUNT_ATTR_IDMAP, 0, 0, namespace)
    answer = libc.syscall(
        _MOUNT_SETATTR, mount, b"", _AT_EMPTY_PATH, attributes, ctypes.c_size_t(len(attributes))
    )
    _check("mount_setattr(IDMAP)", answer)


def _user_namespace(libc: ctypes.CDLL) -> int:
    """Return a descriptor of a user namespace with a map; the process that made it has ended."""
    made, make_end = os.pipe()
    go_end, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer = libc.unshare(_NEWUSER)
        os.write(make_end, b"n" if answer else b"y")
        os.read(go_end, 1)
        os._exit(0)
    try:
        if os.read(made, 1) != b"y":
            raise OSError("a user namespace cannot be made")
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{pid}/{name}", "w") as file:
                file.write("0 100000 65536")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
    finally:
        os.write(go, b"g")
        os.waitpid(pid, 0)


def _check(what: str, answer: int) -> int:
    if answer < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return answer


if __name__ == "__main__":
    try:
        {"links": links, "idmap": idmap}[sys.argv[1]]()
    except OSError as problem:
        sys.stdout.write(f"{problem.strerror or problem}\n")
        sys.exit(1)
