"""How much containers have written: sampled in the background, never on request.

Spec:
    kubernetes/cri-api api.proto, ContainerStats.writable_layer: with its own timestamp.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from polypod.plugin.ids import ContainerId
from polypod.plugin.images import FilesystemUsage
from polypod_image.layers import disk_usage
from polypod_image.places import Places

log = logging.getLogger(__name__)

_DUTY: Final = 0.05
"""Of one core at most: a container with many files is sampled less often."""
_FIRST_S: Final = 1.0
"""After a start there is no sample of anybody: the first round does not wait for a whole interval."""


class Sampler:
    """Walks the writable layers, one after the other, in a thread of its own."""

    def __init__(
        self, places: Places, interval_s: float, containers: Callable[[], Sequence[ContainerId]]
    ) -> None:
        """Sample what ``containers`` returns every ``interval_s`` seconds; never if that is 0."""
        self._places = places
        self._interval_s = interval_s
        self._containers = containers
        self._samples: dict[ContainerId, FilesystemUsage] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="image-usage", daemon=True)

    def start(self) -> None:
        """Begin."""
        if self._interval_s:
            self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def last(self, container_id: ContainerId) -> FilesystemUsage | None:
        """Return the last sample, None if there is none yet."""
        return self._samples.get(container_id)

    def forget(self, container_id: ContainerId) -> None:
        """Drop a container's sample."""
        self._samples.pop(container_id, None)

    def begin(self, container_id: ContainerId) -> None:
        """Note what a layer that was made just now takes: its own directory. Three quick calls."""
        if self._interval_s and container_id not in self._samples:
            made = os.stat(self._places.container(container_id) / "fs")
            self._note(container_id, made.st_blocks * 512, 1)

    def first(self, container_id: ContainerId) -> None:
        """Count a layer that was made just now with files in it. Blocks."""
        if self._interval_s:
            self.sample(container_id)

    def sample(self, container_id: ContainerId) -> None:
        """Take one sample now. Blocks."""
        used, inodes = disk_usage(str(self._places.container(container_id) / "fs"))
        if inodes:
            self._note(container_id, used, inodes)

    def _note(self, container_id: ContainerId, used: int, inodes: int) -> None:
        root = self._places.root
        whole = os.statvfs(root)
        numbered = whole.f_files > 0
        self._samples[container_id] = FilesystemUsage(
            timestamp_ns=time.time_ns(),
            mountpoint=root,
            used_bytes=used,
            inodes_used=inodes,
            limit_bytes=whole.f_blocks * whole.f_frsize,
            inodes_total=whole.f_files if numbered else None,
            inodes_free=whole.f_ffree if numbered else None,
        )

    def _run(self) -> None:
        pause = min(_FIRST_S, self._interval_s)
        while not self._stop.wait(pause):
            pause = self._interval_s
            here = self._containers()
            for container_id in here:
                began = time.thread_time()
                try:
                    self.sample(container_id)
                except OSError as error:
                    log.warning(
                        "container %s: its files cannot be counted: %s", container_id, error
                    )
                if self._stop.wait((time.thread_time() - began) / _DUTY):
                    return
            for gone in set(self._samples) - set(self._containers()):
                self.forget(gone)
