"""Images that a bench makes: a busybox, a pause program, and large trees of files. Equal inputs give equal bytes."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import random
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import zstandard

from polypod.testing.registry import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Image, digest_of

POOL_BYTES = 16 << 20
_LETTERS = "abcdefghijklmnopqrstuvwxyz_(),.:\n"
PAUSE_C = "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n"


@dataclass(frozen=True, slots=True)
class File:
    """A regular file of a layer."""

    path: str
    data: bytes
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class Layer:
    """A compressed layer."""

    media_type: str
    blob: bytes
    diff_id: str


def layer(files: Iterable[File], compression: str = "gzip") -> Layer:
    """Return a layer of files and the directories that they need; ``gzip`` (level 6) or ``zstd`` (level 3)."""
    tar = _tar(files)
    if compression == "gzip":
        blob = gzip.compress(tar, 6, mtime=0)
    else:
        blob = zstandard.compress(tar, 3)
    return Layer(f"{OCI_LAYER}+{compression}", blob, digest_of(tar))


def _tar(files: Iterable[File]) -> bytes:
    made: set[str] = set()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for file in files:
            for parent in reversed(Path(file.path).parents):
                name = str(parent)
                if name != "." and name not in made:
                    made.add(name)
                    archive.addfile(_header(name, tarfile.DIRTYPE, 0o755))
            header = _header(file.path, tarfile.REGTYPE, file.mode)
            header.size = len(file.data)
            archive.addfile(header, io.BytesIO(file.data))
    return out.getvalue()


def _header(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type, header.mode, header.mtime = kind, mode, 1_700_000_000
    return header


def image(layers: Sequence[Layer], command: Sequence[str]) -> Image:
    """Return an image of layers, in memory.

    Spec:
        image-spec config.md, manifest.md.
    """
    config = json.dumps(
        {
            "architecture": _architecture(),
            "os": "linux",
            "config": {"Cmd": list(command), "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [each.diff_id for each in layers]},
        }
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _descriptor(OCI_CONFIG, config),
            "layers": [_descriptor(each.media_type, each.blob) for each in layers],
        }
    ).encode()
    blobs = {digest_of(each.blob): each.blob for each in layers} | {digest_of(config): config}
    return Image(manifest, OCI_MANIFEST, blobs)


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


def _architecture() -> str:
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def write_archive(made: Image, name: str, path: Path) -> Path:
    """Write an OCI archive that both servers import under a name.

    Spec:
        image-spec image-layout.md; ``io.containerd.image.name`` is what ``ctr images import`` reads.
    """
    names = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
    index = {"schemaVersion": 2, "manifests": [made.descriptor(annotations=names)]}
    files = [
        File("oci-layout", b'{"imageLayoutVersion": "1.0.0"}'),
        File("index.json", json.dumps(index).encode()),
    ]
    blobs = {**made.blobs, made.digest: made.manifest}
    files += [File(f"blobs/{key.replace(':', '/')}", data) for key, data in blobs.items()]
    path.write_bytes(_tar(files))
    return path


def busybox() -> Image:
    """Return an image that has this host's static busybox at ``/bin/busybox``."""
    program = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
    return image([layer([File("bin/busybox", program, 0o755)])], ["/bin/busybox", "sh"])


def pause() -> Image:
    """Return a sandbox image: a tiny static program where there is a compiler, else busybox's sleep."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        data = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
        return image([layer([File("pause", data, 0o755)])], ["/pause", "sleep", "1000000000"])
    with tempfile.TemporaryDirectory() as place:
        source, program = Path(place, "pause.c"), Path(place, "pause")
        source.write_text(PAUSE_C)
        words = [compiler, "-Os", "-s", "-static", "-o", str(program), str(source)]
        subprocess.run(words, check=True)
        return image([layer([File("pause", program.read_bytes(), 0o755)])], ["/pause"])


class Trees:
    """Trees of files that compress about as programs and texts do; each seed gives other files.

    Args:
        files: how many in one tree.
        size: bytes of one tree, about.
    """

    def __init__(self, files: int, size: int) -> None:
        self._files = files
        self._mean = size / files
        maker = random.Random("pool")
        words = ["".join(maker.choices(_LETTERS, k=maker.randint(2, 12))) for _ in range(5_000)]
        weights = [1 / rank for rank in range(1, len(words) + 1)]  # as in languages
        text = " ".join(maker.choices(words, weights, k=POOL_BYTES // 6)).encode()
        # An eighth does not compress: pictures, archives, keys.
        hard = maker.randbytes(POOL_BYTES // 8)
        self._pool = text[: POOL_BYTES - len(hard)] + hard

    def tree(self, seed: str) -> list[File]:
        """Return the files, at least as many bytes as asked for: many small ones, few large ones."""
        maker = random.Random(seed)
        weights = [maker.lognormvariate(0, 1.4) for _ in range(self._files)]
        scale = self._files * self._mean / sum(weights)
        return [self._file(maker, number, weight * scale) for number, weight in enumerate(weights)]

    def _file(self, maker: random.Random, number: int, size: float) -> File:
        path = f"usr/lib/part{number % 40}/module{number % 600}/file{number}.dat"
        own = hashlib.sha256(maker.randbytes(8)).digest()
        start, wanted = maker.randrange(len(self._pool)), int(size)
        piece = self._pool[start : start + wanted]
        return File(path, own + piece + self._pool[: wanted - len(piece)])

    def image(self, seed: str, layers: int, compression: str) -> Image:
        """Return a tree as an image of so many layers."""
        files = self.tree(seed)
        # Whole directories go into one layer, so that layers do not repeat each other's.
        parts = [[file for file in files if _part(file) % layers == at] for at in range(layers)]
        return image([layer(part, compression) for part in parts], ["/none"])


def _part(file: File) -> int:
    return int(file.path.split("/")[2].removeprefix("part"))
