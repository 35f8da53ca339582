"""Mend a store that no server uses: drop what is damaged, make anew what can be made from blobs.

Spec:
    Reliability I13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from polypod.plugin.errors import PolypodError
from polypod.plugin.ids import ContainerId, ImageId
from polypod_image.block import NAME as BLOCK
from polypod_image.catalog import StoredImage
from polypod_image.containers import holdings
from polypod_image.inspection import Finding, names_of
from polypod_image.inventory import Inventory
from polypod_image.options import StoreOptions
from polypod_image.places import Places
from polypod_image.trash import Trash


@dataclass(frozen=True, slots=True)
class Mended:
    """What was done about one finding."""

    finding: Finding
    done: str
    left: bool = False
    """It is still damaged."""


@contextmanager
def opened(root: Path, options: StoreOptions) -> Iterator[Inventory]:
    """Open a store for changes; what was thrown away is deleted at the end.

    Raises:
        FailedPrecondition: a server uses it.
    """
    places = Places(root)
    places.make()
    trash = Trash(places.trash)
    inventory = Inventory(
        places, trash, options, lambda: [held.image_id for held in holdings(places).values()]
    )
    try:
        yield inventory
    finally:
        trash.empty()
        inventory.close()


def repair(
    inventory: Inventory, findings: Iterable[Finding], told: Callable[[Mended], None]
) -> list[Mended]:
    """Do what can be done about findings.

    Args:
        inventory: opened for changes.
        findings: what `inspection.verify` found there.
        told: of each, when it is done.
    """
    done: list[Mended] = []
    # Layers are made from blobs: those first.
    for finding in sorted(findings, key=lambda each: each.kind != "blob"):
        done.append(_MENDERS[finding.kind](inventory, finding))
        told(done[-1])
    inventory.collect()
    return done


def _mend_blob(inventory: Inventory, finding: Finding) -> Mended:
    """Drop the images that have it: only who published the blob has it whole."""
    names: list[str] = []
    for image in list(inventory.catalog.images.values()):
        if not image.retired and any(digest == finding.digest for digest, _ in image.blobs):
            names += names_of(inventory.catalog, image)
            inventory.catalog.retire(image.id)
    inventory.drop_blob(finding.digest)
    if not names:
        return Mended(finding, "dropped with its image")
    return Mended(finding, f"dropped; pull or load again: {', '.join(names)}")


def _mend_layer(inventory: Inventory, finding: Finding) -> Mended:
    images = [each for each in inventory.catalog.images.values() if finding.digest in each.chain]
    users = _containers_of(inventory, images)
    if users:
        some = ", ".join(each[:13] for each in users[:5])
        return Mended(finding, f"containers use it ({some}): remove them, then repair", left=True)
    inventory.drop_layer(finding.digest)
    whole = [each for each in images if not each.retired]
    if not whole:
        return Mended(finding, "dropped with its image")
    try:
        inventory.unpack(whole[0])
    except PolypodError as error:
        for image in whole:
            inventory.catalog.retire(image.id)
        names = ", ".join(finding.images)
        return Mended(finding, f"cannot be unpacked again ({error}); pull or load again: {names}")
    return Mended(finding, "unpacked again")


def _mend_block(inventory: Inventory, finding: Finding) -> Mended:
    inventory.drop_beside(finding.digest, BLOCK)
    return Mended(finding, "dropped; made again for the next container that needs it")


_MENDERS: dict[str, Callable[[Inventory, Finding], Mended]] = {
    "blob": _mend_blob,
    "layer": _mend_layer,
    "block": _mend_block,
}


def _containers_of(inventory: Inventory, images: Iterable[StoredImage]) -> list[ContainerId]:
    ids: set[ImageId] = {each.id for each in images}
    return [name for name, held in holdings(inventory.places).items() if held.image_id in ids]
