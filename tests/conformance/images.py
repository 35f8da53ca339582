"""Images for the suite, made of the host's busybox: OCI layouts on disk, pulled as ``oci:PATH``."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

NAME = "localhost/conformance:latest"
SIMULATED_NAME = "localhost/demo:latest"
"""The one image that the simulator's store knows."""
MEDIA = "application/vnd.oci.image"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
PASSWD = b"""root:x:0:0:root:/root:/bin/sh
app:x:1000:2000:app:/home/app:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
"""
GROUP = b"""root:x:0:
app:x:2000:
extra:x:3000:app
more:x:3001:app,nobody
nogroup:x:65534:
"""

Member = tuple[tarfile.TarInfo, bytes]


def directory(name: str, mode: int = 0o755) -> Member:
    """Return a directory for `layer`."""
    item = tarfile.TarInfo(name)
    item.type, item.mode = tarfile.DIRTYPE, mode
    return item, b""


def file(name: str, data: bytes, mode: int = 0o644, uid: int = 0) -> Member:
    """Return a file for `layer`."""
    item = tarfile.TarInfo(name)
    item.size, item.mode, item.uid, item.gid = len(data), mode, uid, uid
    return item, data


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> Member:
    """Return a symbolic or hard link for `layer`."""
    item = tarfile.TarInfo(name)
    item.type, item.linkname = kind, target
    return item, b""


def layer(members: Sequence[Member]) -> bytes:
    """Return an uncompressed layer; equal members give equal bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for item, data in members:
            tar.addfile(item, io.BytesIO(data))
    return out.getvalue()


def tell_user() -> bytes:
    """Return a program for x86-64 that exits with its effective user id (its last eight bits)."""
    code = bytes.fromhex("b86b000000 0f05 89c7 b8e7000000 0f05")  # geteuid, exit_group
    start, size = 0x400000, 64 + 56 + len(code)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, start + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, start, start, size, size, 0x1000)
    return header + segment + code


def busybox_layer() -> bytes:
    """Return busybox with all its applets, and the files that tests look at."""
    program = shutil.which("busybox")
    assert program is not None
    listed = subprocess.run([program, "--list"], capture_output=True, text=True, check=True)
    applets = [each for each in listed.stdout.split() if each != "busybox"]
    directories = [
        directory(name, 0o1777 if name == "tmp" else 0o755)
        for name in ("bin", "dev", "etc", "proc", "sys", "tmp", "root", "home", "data")
    ]
    return layer(
        [
            *directories,
            directory("home/app"),
            file("bin/busybox", Path(program).read_bytes(), 0o755),
            *(link(f"bin/{name}", "busybox") for name in applets),
            file("etc/passwd", PASSWD),
            file("etc/group", GROUP),
            file("data/kept", b"from the image\n"),
            # Set-user-ID: no_new_privs must take its effect away.
            file("bin/as-app", tell_user(), 0o4755, uid=1000),
        ]
    )


def write_layout(
    place: Path,
    layers: Sequence[bytes],
    config: Mapping[str, object] | None = None,
    *,
    name: str = NAME,
) -> Path:
    """Write an OCI layout of one image.

    Args:
        place: the directory to make.
        layers: uncompressed.
        config: the ``config`` object of the image's configuration.
        name: its full reference.
    """
    blobs = place / "blobs/sha256"
    blobs.mkdir(parents=True)
    machine = platform.machine()
    packed = [gzip.compress(each, 1, mtime=0) for each in layers]
    image = {
        "architecture": _ARCHITECTURES.get(machine, machine),
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sh", "-c", "sleep 1000"], **(config or {})},
        "rootfs": {"type": "layers", "diff_ids": [_digest(each) for each in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{MEDIA}.manifest.v1+json",
        "config": _put(blobs, json.dumps(image).encode(), f"{MEDIA}.config.v1+json"),
        "layers": [_put(blobs, each, f"{MEDIA}.layer.v1.tar+gzip") for each in packed],
    }
    described = _put(blobs, json.dumps(manifest).encode(), f"{MEDIA}.manifest.v1+json")
    described["annotations"] = {"io.containerd.image.name": name}
    (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [described]}))
    return place


def _put(blobs: Path, data: bytes, media_type: str) -> dict[str, object]:
    digest = _digest(data)
    (blobs / digest.partition(":")[2]).write_bytes(data)
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
