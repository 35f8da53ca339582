"""A real registry on this host: Debian's docker-registry on a loopback port, with a directory of its own.

::

    with Registry() as registry:
        push(registry.address, "demo/app", "1", layout)      # an OCI layout directory or Image
        …registry.address…

`push` is a small client of the distribution-spec's push: what a registry holds is what a test made.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

PROGRAM = "docker-registry"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
LIMIT_S = 30.0


def free_port() -> int:
    """Return a loopback port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Registry:
    """One docker-registry; a context manager.

    Args:
        auth: its ``auth:`` section, such as ``{"htpasswd": {"realm": "r", "path": "/…"}}``.
        certificate: (certificate, key) for TLS.
        place: where it keeps images; None makes a directory that goes away with it.
        port: to listen on; 0 takes a free one.
    """

    def __init__(
        self,
        *,
        auth: Mapping[str, object] | None = None,
        certificate: tuple[Path, Path] | None = None,
        place: Path | None = None,
        port: int = 0,
    ) -> None:
        self._auth = auth
        self._certificate = certificate
        self._temporary = place is None
        self.place = place or Path(tempfile.mkdtemp(prefix="polypod-registry-"))
        self.address = f"127.0.0.1:{port or free_port()}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()
        if self._temporary:
            shutil.rmtree(self.place, ignore_errors=True)

    def start(self) -> None:
        """Execute it and wait until it takes connections."""
        http_settings: dict[str, object] = {"addr": self.address}
        if self._certificate is not None:
            certificate, key = map(str, self._certificate)
            http_settings["tls"] = {"certificate": certificate, "key": key}
        settings: dict[str, object] = {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": str(self.place / "data")},
                "delete": {"enabled": True},
            },
            "http": http_settings,
        }
        if self._auth is not None:
            settings["auth"] = self._auth
        file = self.place / "config.yml"
        file.write_text(json.dumps(settings))  # JSON is YAML
        with (self.place / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [PROGRAM, "serve", str(file)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        host, port = self.address.split(":")
        deadline = time.monotonic() + LIMIT_S
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise RuntimeError(f"no registry: {(self.place / 'log').read_text()}") from None
                time.sleep(0.02)

    def stop(self) -> None:
        """End it, by its pid."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(LIMIT_S)


def digest_of(data: bytes) -> str:
    """Return the sha256 digest."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Image:
    """An image in memory: its manifest and every blob by digest; `inner` are manifests of an index."""

    manifest: bytes
    media_type: str
    blobs: Mapping[str, bytes]
    inner: Sequence[Image] = field(default=())

    @property
    def digest(self) -> str:
        """The digest of the manifest or index."""
        return digest_of(self.manifest)

    def descriptor(self, **more: object) -> dict[str, object]:
        """Return what points at it."""
        return {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": len(self.manifest),
            **more,
        }


def image_of_layout(layout: Path) -> Image:
    """Read the one image (or index) of an OCI layout directory."""
    top = json.loads((layout / "index.json").read_text())["manifests"][0]
    return _read(layout, top)


def _read(layout: Path, at: Mapping[str, object]) -> Image:
    def blob(digest: str) -> bytes:
        return (layout / "blobs" / digest.replace(":", "/")).read_bytes()

    raw = blob(str(at["digest"]))
    document = json.loads(raw)
    if "manifests" in document:
        inner = [_read(layout, each) for each in document["manifests"]]
        return Image(raw, str(at["mediaType"]), {}, inner)
    parts = [document["config"], *document["layers"]]
    return Image(raw, str(at["mediaType"]), {p["digest"]: blob(p["digest"]) for p in parts})


def push(
    address: str, repository: str, tag: str, image: Image | Path, *, authorization: str = ""
) -> str:
    """Push an image to a registry that speaks plain HTTP; return the digest of its manifest.

    Spec:
        distribution-spec "Push": HEAD, POST, PUT for each blob; then the manifests, inner ones first.
    """
    if isinstance(image, Path):
        image = image_of_layout(image)
    host, port = address.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=LIMIT_S)
    headers = {"Authorization": authorization} if authorization else {}
    try:
        for each in (*image.inner, image):
            for digest, data in each.blobs.items():
                _push_blob(connection, repository, digest, data, headers)
            name = tag if each is image else each.digest
            path = f"/v2/{repository}/manifests/{name}"
            typed = {**headers, "Content-Type": each.media_type}
            _done(connection, "PUT", path, each.manifest, typed, 201)
    finally:
        connection.close()
    return image.digest


def _push_blob(
    connection: http.client.HTTPConnection,
    repository: str,
    digest: str,
    data: bytes,
    headers: Mapping[str, str],
) -> None:
    status, _ = _ask(connection, "HEAD", f"/v2/{repository}/blobs/{digest}", None, headers)
    if status == 200:
        return
    place = _done(connection, "POST", f"/v2/{repository}/blobs/uploads/", b"", headers, 202)
    path = place.partition("://")[2].partition("/")[2] if "://" in place else place.lstrip("/")
    joiner = "&" if "?" in path else "?"
    typed = {**headers, "Content-Type": "application/octet-stream"}
    _done(connection, "PUT", f"/{path}{joiner}digest={digest}", data, typed, 201)


def _done(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes,
    headers: Mapping[str, str],
    wanted: int,
) -> str:
    status, location = _ask(connection, method, path, body, headers)
    if status != wanted:
        raise RuntimeError(f"{method} {path}: status {status}, expected {wanted}")
    return location


def _ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | None,
    headers: Mapping[str, str],
) -> tuple[int, str]:
    connection.request(method, path, body, dict(headers))
    response = connection.getresponse()
    response.read()
    return response.status, response.getheader("Location") or ""
