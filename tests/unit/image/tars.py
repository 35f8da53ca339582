"""Tars and layouts made byte by byte, so that a test can make wrong ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

LAYER = "application/vnd.oci.image.layer.v1.tar"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
END = bytes(1024)


def header(
    name,
    *,
    kind=b"0",
    size=0,
    mode=0o644,
    uid=0,
    gid=0,
    mtime=1000,
    link=b"",
    device=(0, 0),
    raw=None,
):
    """One header block; ``raw`` maps offsets to bytes that are put over it before the checksum."""
    block = bytearray(512)
    block[0 : len(name[:100])] = name[:100]
    for at, width, value in (
        (100, 8, mode),
        (108, 8, uid),
        (116, 8, gid),
        (124, 12, size),
        (136, 12, mtime),
        (329, 8, device[0]),
        (337, 8, device[1]),
    ):
        block[at : at + width] = number(value, width)
    block[156:157] = kind
    block[157 : 157 + len(link[:100])] = link[:100]
    block[257:265] = b"ustar\x0000"
    for at, value in (raw or {}).items():
        block[at : at + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def number(value, width):
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    return bytes([0x80]) + value.to_bytes(width - 1, "big")


def padded(content):
    return content + bytes(-len(content) % 512)


def pax(records, kind=b"x"):
    data = b""
    for key, value in records.items():
        body = b" " + key + b"=" + value + b"\n"
        length = len(body) + 1
        while len(b"%d" % length) + len(body) != length:
            length += 1
        data += b"%d" % length + body
    return header(b"pax", kind=kind, size=len(data)) + padded(data)


def file(name, content=b"x", **more):
    return header(name, size=len(content), **more) + padded(content)


def sparse(name, parts, size, *, stored=None, raw=None):
    """A sparse file as GNU tar wrote it first; at most four parts."""
    stored = sum(length for _, length in parts) if stored is None else stored
    places = {
        386 + 24 * at: number(offset, 12) + number(length, 12)
        for at, (offset, length) in enumerate(parts)
    }
    # The magic is GNU's: what ustar has behind it lies where the map is.
    places |= {257: b"ustar  \0", 329: bytes(16), 483: number(size, 12), **(raw or {})}
    return header(name, kind=b"S", size=stored, raw=places) + padded(b"s" * stored)


def sparse_pax(name, listed, size):
    """A sparse file of form 1.0, its map as given and no content."""
    records = {b"major": b"1", b"minor": b"0", b"name": name, b"realsize": b"%d" % size}
    records = {b"GNU.sparse." + key: value for key, value in records.items()}
    return pax(records) + file(b"GNUSparseFile.0/x", padded(listed))


def directory(name, mode=0o755, **more):
    return header(name, kind=b"5", mode=mode, **more)


def symlink(name, to, **more):
    return header(name, kind=b"2", link=to, mode=0o777, **more)


def hardlink(name, to, **more):
    return header(name, kind=b"1", link=to, **more)


def device(name, numbers, kind=b"3", **more):
    return header(name, kind=kind, device=numbers, **more)


def fifo(name, **more):
    return header(name, kind=b"6", **more)


def longname(name, kind=b"L"):
    return header(b"././@LongLink", kind=kind, size=len(name) + 1) + padded(name + b"\0")


def layer(*parts):
    return b"".join(parts) + END


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def descriptor(data, media_type, **more):
    return {"mediaType": media_type, "digest": digest(data), "size": len(data), **more}


def dumps(value):
    return json.dumps(value).encode()


class Layout:
    """The parts of one image as a layout; change any of them before `write`."""

    def __init__(self, *layers, name="localhost/evil:v1", packed=None, media=LAYER, config=None):
        packed = list(packed) if packed is not None else list(layers)
        self.blobs = dict.fromkeys(map(digest, packed))
        self.blobs = {digest(each): each for each in packed}
        self.config = {
            "os": "linux",
            "architecture": "amd64",
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": [digest(each) for each in layers]},
        }
        self.manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {},
            "layers": [descriptor(each, media) for each in packed],
        }
        self.index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
        self.annotations = {"org.opencontainers.image.ref.name": name} if name else {}
        self.seal()

    def seal(self):
        """Make config, manifest and index point at each other again, after a change of one."""
        raw = dumps(self.config)
        self.blobs[digest(raw)] = raw
        self.manifest["config"] = descriptor(raw, CONFIG)
        self.seal_manifest()
        return self

    def seal_manifest(self):
        raw = dumps(self.manifest)
        self.blobs[digest(raw)] = raw
        self.index["manifests"] = [descriptor(raw, MANIFEST, annotations=self.annotations)]
        return self

    def files(self):
        named = {f"blobs/{key.replace(':', '/')}": data for key, data in self.blobs.items()}
        return {
            "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
            "index.json": dumps(self.index),
            **named,
        }

    def write(self, path: Path) -> Path:
        for name, data in self.files().items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
        return path

    def archive(self, path: Path) -> Path:
        return write_tar(path, self.files())


def write_tar(path: Path, files) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def docker_files(*layers, tags=("localhost/docker:v1",), config=None):
    """What ``docker save`` wrote before it wrote layouts."""
    raw = dumps(
        {
            "os": "linux",
            "architecture": "amd64",
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": [digest(each) for each in layers]},
        }
    )
    name = digest(raw).partition(":")[2] + ".json"
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    listed = [{"Config": name, "RepoTags": list(tags), "Layers": names}]
    return {name: raw, **dict(zip(names, layers, strict=True)), "manifest.json": dumps(listed)}


def gzipped(data):
    return gzip.compress(data, mtime=0)
