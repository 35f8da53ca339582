"""Executes libvirtd where all that it writes is below one directory: ``libvirtd DIRECTORY PROGRAM``.

Its paths are fixed, so each one gets a bind mount in a mount namespace of its own. So servers run side by
side with a libvirtd of the host, and nothing of ours is left outside of our directory.
"""

from __future__ import annotations

import os
import sys

from polypod.supervisor.kernel import mounts, namespace, process

_PLACES = {
    "run": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
    "etc": "/etc/libvirt",
}
_USER = "libvirt-qemu"
_USER_LINE = f"{_USER}:x:64055:64055::/nonexistent:/usr/sbin/nologin\n"
_GROUP_LINES = {_USER: f"{_USER}:x:64055:\n", "kvm": "kvm:x:64054:\n"}


def main(arguments: list[str]) -> None:
    """Become libvirtd."""
    directory, program = arguments
    namespace.unshare(process.CLONE_NEWNS)
    mounts.mount("", "/", "", mounts.MS_REC | mounts.MS_SLAVE)
    for name, place in _PLACES.items():
        own = os.path.join(directory, name)
        os.makedirs(own, mode=0o755, exist_ok=True)
        os.makedirs(place, exist_ok=True)
        mounts.mount(own, place, "", mounts.MS_BIND)
    _know_users(directory)
    config = os.path.join(directory, "libvirtd.conf")
    pid_file = os.path.join(directory, "run", "libvirtd.pid")
    os.execv(program, [program, "-f", config, "--pid-file", pid_file])


def _know_users(directory: str) -> None:
    """The QEMU driver does not start without the users of a package that we do without."""
    for path, lines in (("/etc/passwd", {_USER: _USER_LINE}), ("/etc/group", _GROUP_LINES)):
        with open(path) as file:
            text = file.read()
        known = {line.partition(":")[0] for line in text.splitlines()}
        missing = [line for name, line in lines.items() if name not in known]
        if not missing:
            continue
        own = os.path.join(directory, os.path.basename(path))
        with open(own, "w") as file:
            file.write(text + "".join(missing))
        os.chmod(own, 0o644)
        mounts.mount(own, path, "", mounts.MS_BIND)


if __name__ == "__main__":
    main(sys.argv[1:])
