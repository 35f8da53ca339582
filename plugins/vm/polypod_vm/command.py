"""``polypod vm build-guest``: build the guest ahead of the first pod, or for a host without its sources."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from polypod.plugin import BackendError, CommandType
from polypod_vm import guestimage, kernelimage


def _configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser(
        "build-guest",
        help="build kernel and initramfs of the guest",
        description=(
            "Build the guest from this host's Python and a kernel of Debian, reproducibly: equal inputs "
            "give equal bytes. Point a handler's option `guest` to the directory."
        ),
    )
    build.add_argument("directory", type=Path, help="where guests are kept; it is made")
    build.add_argument(
        "--kernel-package",
        type=Path,
        metavar="FILE",
        help="a linux-image .deb to unpack; without it the newest kernel in /boot is taken",
    )


def _run(arguments: argparse.Namespace) -> int:
    try:
        with tempfile.TemporaryDirectory() as unpacked:
            kernel = _kernel(arguments.kernel_package, Path(unpacked))
            image = guestimage.build(arguments.directory.absolute(), kernel)
    except (BackendError, OSError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"polypod vm build-guest: {error}\n")
        return 1
    sys.stdout.write(
        f"guest {image.digest}: kernel {image.release}, "
        f"initramfs {image.initramfs.stat().st_size >> 10} KiB, in {image.kernel.parent}\n"
    )
    return 0


def _kernel(package: Path | None, target: Path) -> kernelimage.Kernel:
    if package is None:
        found = kernelimage.find()
    else:
        subprocess.run(["dpkg-deb", "-x", str(package), str(target)], check=True)
        found = kernelimage.find(target)
    if found is None:
        where = package or "/boot"
        raise BackendError(f"{where}: no kernel for virtual machines (linux-image-*-cloud-*)")
    return found


VM: Final = CommandType("vm", "build what the runtime type vm needs", _configure, _run)
