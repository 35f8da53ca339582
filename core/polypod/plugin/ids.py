"""The names of things: one type per kind of id, so that mypy refuses a mix-up."""

from __future__ import annotations

import secrets
from typing import NewType

SandboxId = NewType("SandboxId", str)
"""64 hex digits, made by core."""
ContainerId = NewType("ContainerId", str)
"""64 hex digits, made by core."""
ExecId = NewType("ExecId", str)
"""64 hex digits, made by core: an extra process in a container."""
ProcessId = NewType("ProcessId", str)
"""What keeper and supervisor call a process: a container's id, an exec's id, or ``init-`` + sandbox id."""
ImageId = NewType("ImageId", str)
"""``sha256:`` + hex: the digest of the image's config (image-spec, ImageID)."""
Digest = NewType("Digest", str)
"""``algorithm:hex`` (image-spec, descriptor.md)."""


def new_id() -> str:
    """Return 64 random hex digits, the form in which every CRI client expects ids."""
    return secrets.token_hex(32)
