"""New limits of containers that exist: collected from plugins, no limit by two of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from polypod.plugin import FailedPrecondition, Resources
from polypod_nri import limits
from polypod_nri.owners import Owners
from polypod_nri.wire import api


class Updates:
    """What plugins want of containers that exist: of each, no limit by two plugins."""

    def __init__(self) -> None:
        self._updates: list[api.ContainerUpdate] = []
        self._owners: dict[str, Owners] = {}
        self.title = ""

    def add(self, wanted: Sequence[api.ContainerUpdate], title: str) -> None:
        """Take what one plugin wants.

        Raises:
            FailedPrecondition: another one wants a limit of the same container to be otherwise.
        """
        for update in wanted:
            owners = self._owners.setdefault(update.container_id, Owners())
            for field, key, _value in limits.fields(update.linux.resources):
                other = owners.claim(field, key, title)
                if other:
                    raise FailedPrecondition(
                        f"NRI plugins {other} and {title} both set {field} of container "
                        f"{update.container_id}"
                    )
            self._updates.append(update)
            self.title = title

    def all(self) -> list[api.ContainerUpdate]:
        """Return all that is wanted."""
        return list(self._updates)

    def take(self, container_id: str) -> list[api.ContainerUpdate] | None:
        """Take out and return what is wanted of one container; None if that is nothing."""
        own = [each for each in self._updates if each.container_id == container_id]
        self._updates = [each for each in self._updates if each.container_id != container_id]
        return own or None

    @staticmethod
    def merged(wanted: Resources, own: Sequence[api.ContainerUpdate]) -> Resources:
        """Return limits with what plugins want of the same container above them.

        Raises:
            FailedPrecondition: one of them cannot be changed.
        """
        message = limits.from_cri(wanted)
        for update in own:
            message.MergeFrom(update.linux.resources)
        pages = {item.page_size: item.limit for item in message.hugepage_limits}
        del message.hugepage_limits[:]
        for size, limit in pages.items():
            message.hugepage_limits.add(page_size=size, limit=limit)
        try:
            merged = limits.to_cri(limits.fields(message))
        except limits.CannotUpdate as error:
            raise FailedPrecondition(str(error)) from error
        return replace(merged, oom_score_adj=wanted.oom_score_adj)
