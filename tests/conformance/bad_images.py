"""Bad requests about images, and archives that are hostile or broken."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

from conformance import images
from conformance.bad_world import Row

from polypod.client import pb


def _image(call: str, reference: str):
    return getattr(pb, f"{call}Request")(image=pb.ImageSpec(image=reference))


_CALLS = ("ImageStatus", "PullImage", "RemoveImage")
_MALFORMED = {
    "spaces": "not a reference",
    "capitals": "localhost/Demo",
    "empty tag": "localhost/demo:",
    "digest of a wrong length": "localhost/demo@sha256:abc",
    "NUL": "localhost/demo\0",
    "line break": "localhost/demo\n",
    "climbing": "../../etc/passwd",
    "oversize": "a" * ((1 << 20) + 1),
}

ROWS = [
    *(
        Row(f"{call}: no image", call, lambda _w, call=call: getattr(pb, f"{call}Request")(),
            "INVALID_ARGUMENT", ("image",))
        for call in _CALLS
    ),
    *(
        Row(f"{call}: no reference", call, lambda _w, call=call: _image(call, ""),
            "INVALID_ARGUMENT", ("image",))
        for call in _CALLS
    ),
    *(
        Row(f"{call}: {what}", call, lambda _w, call=call, text=text: _image(call, text),
            "INVALID_ARGUMENT")
        for call in _CALLS
        for what, text in _MALFORMED.items()
    ),
    *(
        Row(f"{call}: name of 5000 letters", call,
            lambda _w, call=call: _image(call, "a" * 5000), "INVALID_ARGUMENT", real=True)
        for call in _CALLS
    ),
    Row("ListImages: spaces", "ListImages",
        lambda _w: pb.ListImagesRequest(filter=pb.ImageFilter(image=pb.ImageSpec(image="a b"))),
        "INVALID_ARGUMENT", ("reference",)),
    Row("PullImage: path that is not there", "PullImage",
        lambda _w: _image("PullImage", "oci:/no/such/layout"), "NOT_FOUND", ("/no/such/layout",),
        real=True),
    Row("PullImage: path that is no layout", "PullImage",
        lambda _w: _image("PullImage", "oci:/etc"), "INVALID_ARGUMENT", ("layout",), real=True),
    Row("PullImage: file that is no archive", "PullImage",
        lambda _w: _image("PullImage", "oci-archive:/etc/passwd"), "INVALID_ARGUMENT",
        real=True),
    Row("PullImage: device", "PullImage", lambda _w: _image("PullImage", "oci-archive:/dev/zero"),
        "INVALID_ARGUMENT", real=True),
]  # fmt: skip


# Archives. Each function writes one below a directory and returns the reference to pull.


def _layout(place: Path, *members: images.Member, **config: object) -> Path:
    return images.write_layout(
        place, [images.layer(members)], config, name="localhost/hostile:latest"
    )


def _with(*members: images.Member) -> Callable[[Path], Path]:
    return lambda place: _layout(place, *members)


def _edited(edit: Callable[[Path, dict], None]) -> Callable[[Path], Path]:
    """Return a maker of a good layout whose manifest is then edited; blobs keep their names."""

    def make(place: Path) -> Path:
        layout = _layout(place, images.file("good", b"data"))
        index = json.loads((layout / "index.json").read_text())
        edit(layout, index)
        (layout / "index.json").write_text(json.dumps(index))
        return layout

    return make


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def _manifest(layout: Path, index: dict) -> dict:
    return json.loads(_blob(layout, index["manifests"][0]["digest"]).read_text())


def _no_layout(layout: Path, _index: dict) -> None:
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "9"}')


def _other_bytes(layout: Path, index: dict) -> None:
    path = _blob(layout, _manifest(layout, index)["layers"][0]["digest"])
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def _truncated(layout: Path, index: dict) -> None:
    path = _blob(layout, _manifest(layout, index)["layers"][0]["digest"])
    path.write_bytes(path.read_bytes()[:-20])


def _missing(layout: Path, index: dict) -> None:
    _blob(layout, _manifest(layout, index)["config"]["digest"]).unlink()


def _size(_layout: Path, index: dict) -> None:
    index["manifests"][0]["size"] += 1


def _climbing_digest(_layout: Path, index: dict) -> None:
    index["manifests"][0]["digest"] = "sha256:../../../../etc/passwd"


def _wrong_kind(_layout: Path, index: dict) -> None:
    index["manifests"][0]["mediaType"] = "application/vnd.oci.image.config.v1+json"


def _no_list(_layout: Path, index: dict) -> None:
    index["manifests"] = {"not": "a list"}


def _other_machine(_layout: Path, index: dict) -> None:
    index["manifests"].append(dict(index["manifests"][0]))
    for each in index["manifests"]:
        each["platform"] = {"os": "plan9", "architecture": "mips"}


def _fifo(name: str) -> images.Member:
    item = tarfile.TarInfo(name)
    item.type = tarfile.FIFOTYPE
    return item, b""


ARCHIVES: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "a member that climbs": (_with(images.file("../escape", b"x")), ("INVALID_ARGUMENT",)),
    "a member deep below that climbs": (
        _with(images.directory("a"), images.file("a/../../../escape", b"x")),
        ("INVALID_ARGUMENT",),
    ),
    "a hard link to the outside": (
        _with(images.link("passwd", "../../../../etc/passwd", tarfile.LNKTYPE)),
        ("INVALID_ARGUMENT", "NOT_FOUND"),
    ),
    "a hard link through a link": (
        _with(images.link("out", "/etc"), images.link("in", "out/passwd", tarfile.LNKTYPE)),
        ("INVALID_ARGUMENT", "NOT_FOUND"),
    ),
    "a layout of an unknown version": (_edited(_no_layout), ("INVALID_ARGUMENT",)),
    "a layer of other bytes": (_edited(_other_bytes), ("INVALID_ARGUMENT",)),
    "a truncated layer": (_edited(_truncated), ("INVALID_ARGUMENT",)),
    "a missing config": (_edited(_missing), ("INVALID_ARGUMENT", "NOT_FOUND")),
    "a wrong size": (_edited(_size), ("INVALID_ARGUMENT",)),
    "a digest that climbs": (_edited(_climbing_digest), ("INVALID_ARGUMENT",)),
    "a manifest of another kind": (
        _edited(_wrong_kind),
        ("INVALID_ARGUMENT", "FAILED_PRECONDITION"),
    ),
    "an index that is no list": (_edited(_no_list), ("INVALID_ARGUMENT",)),
    "an image for another machine": (_edited(_other_machine), ("NOT_FOUND", "FAILED_PRECONDITION")),
}
"""Name → what writes it, and the codes that a refusal may have."""
