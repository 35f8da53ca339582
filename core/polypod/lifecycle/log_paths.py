"""Where a container's log is: always absolute, always below a directory of the pod or of ours.

The kubelet deletes ``<log_path>*`` when it cleans up: a relative or empty path would make it delete
files in its own working directory.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from polypod.lifecycle.records import SandboxRecord
from polypod.plugin.errors import InvalidArgument
from polypod.plugin.requests import ContainerConfig


def log_location(root: Path, sandbox: SandboxRecord, config: ContainerConfig) -> tuple[Path, Path]:
    """Return the directory that the log must not leave, and the log's path below it.

    Args:
        root: ``server.root``; pods without an absolute log_directory get one below it.
        sandbox: whose log_directory counts.
        config: whose log_path counts; without one a name is made of the metadata.

    Raises:
        InvalidArgument: the path would leave the directory (A7).
    """
    asked = sandbox.config.log_directory
    base = Path(asked) if asked.startswith("/") else root / "logs" / sandbox.id
    name = config.log_path or f"{config.metadata.name}_{config.metadata.attempt}.log"
    parts = PurePosixPath(name).parts
    bad = not parts or ".." in parts or name.startswith("/") or "\0" in name + asked
    if bad or ".." in base.parts:
        raise InvalidArgument(
            f"log_path {name!r} below log_directory {asked!r}: a relative path without '..' was expected"
        )
    return base, base.joinpath(*parts)
