"""Paths that a client or an image gave, judged as text: nothing here touches a file system.

A container path is resolved later, beneath the container's root, by descriptors. The checks here
refuse what could only be meant to leave that root (E19), and names that must be one component (E22).
"""

from __future__ import annotations

from polypod.plugin.errors import InvalidArgument

_PATH_MAX = 4096
_NAME_MAX = 255


def container_path(path: str, field: str) -> str:
    """Return an absolute path inside a container without ``.``, ``..``, or doubled slashes.

    Args:
        path: as given; a relative one is taken from the root.
        field: what to call it in an error.

    Raises:
        InvalidArgument: it is empty, holds a NUL, is too long or climbs above the root.
    """
    _check_text(path, field)
    parts: list[str] = []
    for part in path.split("/"):
        if part in ("", "."):
            continue
        if part != "..":
            parts.append(part)
        elif parts:
            parts.pop()
        else:
            raise InvalidArgument(f"{field} {path!r}: climbs above the container's root with '..'")
    return "/" + "/".join(parts)


def host_path(path: str, field: str) -> str:
    """Return an absolute path of the host, normalised as `container_path` does.

    Raises:
        InvalidArgument: it is not absolute, or as in `container_path`.
    """
    _check_text(path, field)
    if not path.startswith("/"):
        raise InvalidArgument(f"{field} {path!r}: must be an absolute path")
    return container_path(path, field)


def single_component(name: str, field: str) -> str:
    """Return a name that cannot leave the directory it is looked up in.

    Raises:
        InvalidArgument: it is empty, too long, ``.``, ``..``, or holds a slash or a control character.
    """
    if not name or name in (".", "..") or "/" in name or has_control(name):
        raise InvalidArgument(
            f"{field} {name!r}: must be one name, without '/', '..' or control characters"
        )
    if len(name.encode(errors="surrogateescape")) > _NAME_MAX:
        raise InvalidArgument(f"{field}: longer than {_NAME_MAX} bytes")
    return name


def below(path: str, root: str, field: str) -> str:
    """Return a normalised path that lies below a directory (as text; links are the opener's matter).

    Raises:
        InvalidArgument: it lies elsewhere.
    """
    clean, base = host_path(path, field), host_path(root, field)
    if base != "/" and not clean.startswith(f"{base}/"):
        raise InvalidArgument(f"{field} {path!r}: must lie below {root}")
    return clean


def depth(path: str) -> int:
    """Count the components: mounts are made in this order, so that no one hides another."""
    return sum(1 for part in path.split("/") if part)


def has_control(text: str) -> bool:
    """Tell whether a text holds a control character (NUL, newline, escape …)."""
    return any(ord(char) < 0x20 or ord(char) == 0x7F for char in text)


def _check_text(path: str, field: str) -> None:
    if not path:
        raise InvalidArgument(f"{field}: must not be empty")
    if "\0" in path:
        raise InvalidArgument(f"{field} {path!r}: holds a NUL character")
    if len(path.encode(errors="surrogateescape")) > _PATH_MAX:
        raise InvalidArgument(f"{field}: longer than {_PATH_MAX} bytes")
