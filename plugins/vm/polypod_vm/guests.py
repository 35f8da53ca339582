"""What every machine of a handler is made from: the guest's image, and the accelerator that really works."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from polypod.plugin import BackendError, SandboxConfig
from polypod_vm import guestimage, kernelimage
from polypod_vm.guestimage import GuestImage
from polypod_vm.options import VmOptions

EMULATORS: Final = {"x86_64": "qemu-system-x86_64"}
KVM_PROBE_S: Final = 8.0
"""A guest under real KVM answers in less than a second."""
_KVM: Final = "/dev/kvm"
_MIB: Final = 1 << 20
_PERIOD_US: Final = 100_000


def emulator() -> str | None:
    """Return the path of this machine's QEMU; None if it is missing."""
    name = EMULATORS.get(platform.machine())
    return shutil.which(name) if name else None


class Guests:
    """Builds the guest once and finds the accelerator once; both are kept."""

    def __init__(self, root: Path, options: VmOptions) -> None:
        """Use the handler's own directory, unless the options name another one."""
        self._directory = options.guest or root / "guests"
        self._accel_file = root / "accelerator.json"
        self._options = options
        self._image: GuestImage | None = None
        self._accel = ""
        self._lock = asyncio.Lock()
        self._deciding = asyncio.Lock()

    async def image(self) -> GuestImage:
        """Return the guest, building it if it is not there or not of these sources.

        Raises:
            BackendError: there is no kernel, or something of the guest is missing.
        """
        async with self._lock:
            if self._image is None:
                self._image = await asyncio.to_thread(self._find)
            return self._image

    def _find(self) -> GuestImage:
        if self._options.guest is not None:
            found = guestimage.newest(self._options.guest)
            if found is None:
                raise BackendError(
                    f"{self._options.guest}: no guest is there; `polypod vm build-guest` makes one"
                )
            return found
        kernel = kernelimage.find()
        if kernel is None:
            raise BackendError("no kernel for virtual machines in /boot (linux-image-cloud-amd64)")
        return guestimage.build(self._directory, kernel)

    async def accel(self, key: str, probe: Callable[[], Awaitable[bool]]) -> str:
        """Return ``kvm`` or ``tcg``: what is configured, or what a guest was really booted with.

        Args:
            key: names emulator and guest; another key asks again.
            probe: boots a guest under KVM and tells whether it answered.
        """
        if self._options.accel != "auto":
            return self._options.accel
        async with self._deciding:
            if not self._accel:
                self._accel = await self._decide(key, probe)
            return self._accel

    async def _decide(self, key: str, probe: Callable[[], Awaitable[bool]]) -> str:
        if not os.access(_KVM, os.R_OK | os.W_OK):
            return "tcg"
        known = {"key": key, "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip()}
        try:
            kept = json.loads(self._accel_file.read_text())
        except (OSError, ValueError):
            kept = {}
        if {name: kept.get(name) for name in known} == known:
            return str(kept["accel"])
        found = "kvm" if await probe() else "tcg"
        self._accel_file.write_text(json.dumps({**known, "accel": found}))
        return found


def memory_mib(config: SandboxConfig, options: VmOptions) -> int:
    """Return how much memory a pod's machine gets: its limit and what the guest takes."""
    limit = config.resources.memory_limit_in_bytes if config.resources is not None else 0
    if limit <= 0:
        return options.memory_mib
    return -(-limit // _MIB) + options.overhead_mib


def vcpus(config: SandboxConfig, options: VmOptions) -> int:
    """Return how many processors a pod's machine gets: its quota, rounded up."""
    resources = config.resources
    if resources is None or resources.cpu_quota <= 0:
        return options.vcpus
    period = resources.cpu_period or _PERIOD_US
    return max(1, min(-(-resources.cpu_quota // period), os.cpu_count() or 1))
