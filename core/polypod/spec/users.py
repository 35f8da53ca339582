"""Who a container's process is: the user of the request or the image, and its groups.

The user database is handed in as bytes, read elsewhere by a bounded, confined reader (I10). Numbers
are decided here once, and the number that is reported is the number that is used (E17).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from polypod.plugin.errors import InvalidArgument
from polypod.plugin.requests import ContainerSecurity, SupplementalGroupsPolicy

MAX_ID: Final = 2**31 - 1
MAX_DATABASE_BYTES: Final = 10 * 1024 * 1024
# POSIX's portable names, with what adduser and useradd let through beside them.
_NAME: Final = re.compile(r"[A-Za-z_.][A-Za-z0-9_.@-]*\$?|[0-9]+[A-Za-z_.@-][A-Za-z0-9_.@-]*")
_NUMBER_LIKE: Final = re.compile(r"0[xXoObB][0-9A-Fa-f]*|[0-9]+[eE._][0-9_]*")


@dataclass(frozen=True, slots=True)
class UserDatabase:
    """``/etc/passwd`` and ``/etc/group`` of an image; empty where the image has none."""

    passwd: bytes = b""
    group: bytes = b""


@dataclass(frozen=True, slots=True)
class ResolvedUser:
    """Numbers for the kernel, and the home directory for the environment."""

    uid: int = 0
    gid: int = 0
    additional_gids: tuple[int, ...] = ()
    home: str = "/"


@dataclass(frozen=True, slots=True)
class _Account:
    name: str
    uid: str
    gid: str
    home: str


def resolve_user(
    security: ContainerSecurity, image_user: str, database: UserDatabase
) -> ResolvedUser:
    """Return the ids of a container's process.

    The request wins over the image's ``USER`` as a whole: a group of the image belongs to the image's
    user. Without a group, the user's entry gives it, else 0. The primary group is always among the
    additional ones, or a program could drop a membership that files deny (CVE-2023-25173).

    Args:
        security: the request's ``run_as_*`` and supplementary groups.
        image_user: ``USER`` of the image: ``user``, ``uid``, each also with ``:group`` or ``:gid``.
        database: the image's user database.

    Raises:
        InvalidArgument: the fields contradict each other, a number is out of range, a name is unknown.

    Spec:
        kubernetes/cri-api api.proto, LinuxContainerSecurityContext; image-spec config.md, User.
    """
    _check_sizes(database)
    user, group, field = _wanted(security, image_user)
    account, uid = _find_user(user, database.passwd, field)
    gid = _find_group(group, account, database.group, field)
    extra = [gid]
    if security.supplemental_groups_policy is SupplementalGroupsPolicy.MERGE and account:
        extra += _memberships(account.name, database.group)
    extra += [_number(str(value), "supplemental_groups") for value in security.supplemental_groups]
    return ResolvedUser(uid, gid, tuple(dict.fromkeys(extra)), _home(account))


def parse_id(text: str, field: str) -> int | None:
    """Return a uid or gid from 0 to 2³¹-1, or None if the text is a name.

    Raises:
        InvalidArgument: a number out of range, or neither a number nor a possible name.

    Spec:
        CVE-2024-40635 and CVE-2026-46680: neither wrap around nor look a number up as a name.
    """
    if text.isascii() and text.isdigit():
        return _number(text, field)
    if _NUMBER_LIKE.fullmatch(text) or not _NAME.fullmatch(text):
        raise InvalidArgument(
            f"{field} {text!r}: give a decimal number from 0 to {MAX_ID} or a user or group name"
        )
    return None


def _wanted(security: ContainerSecurity, image_user: str) -> tuple[str, str, str]:
    """Return user, group and the name of the field that they come from."""
    by_id, by_name = security.run_as_user, security.run_as_username
    if by_id is not None and by_name:
        raise InvalidArgument(
            f"run_as_user {by_id} and run_as_username {by_name!r} exclude each other: give one"
        )
    if security.run_as_group is not None and by_id is None and not by_name:
        raise InvalidArgument(
            f"run_as_group {security.run_as_group}: needs run_as_user or run_as_username"
        )
    group = "" if security.run_as_group is None else str(security.run_as_group)
    if by_id is not None:
        return str(by_id), group, "run_as_user"
    if by_name:
        return by_name, group, "run_as_username"
    user, _, group = image_user.partition(":")
    return user, group, "the image's USER"


def _find_user(user: str, passwd: bytes, field: str) -> tuple[_Account | None, int]:
    if not user:
        return _first(passwd, "", 0), 0
    uid = parse_id(user, field)
    if uid is not None:
        return _first(passwd, "", uid), uid
    account = _first(passwd, user, None)
    if account is None:
        raise InvalidArgument(f"{field} {user!r}: no such user in the image's /etc/passwd")
    return account, _number(account.uid, f"{field} {user!r}: uid in /etc/passwd")


def _find_group(group: str, account: _Account | None, database: bytes, field: str) -> int:
    if not group:
        if account is None:
            return 0
        return _number(account.gid, f"{field}: gid of {account.name!r} in /etc/passwd")
    gid = parse_id(group, f"{field}, group")
    if gid is not None:
        return gid
    for name, number, _members in _groups(database):
        if name == group:
            return _number(number, f"{field}: gid of {group!r} in /etc/group")
    raise InvalidArgument(f"{field}: no group {group!r} in the image's /etc/group")


def _first(passwd: bytes, name: str, uid: int | None) -> _Account | None:
    """Return the first entry of a name, or of a uid: the order of the file decides, as in libc."""
    for fields in _entries(passwd, 7):
        if (uid is None and fields[0] == name) or (uid is not None and _same(fields[2], uid)):
            return _Account(fields[0], fields[2], fields[3], fields[5])
    return None


def _memberships(user: str, group: bytes) -> Iterator[int]:
    for name, number, members in _groups(group):
        if user in members:
            yield _number(number, f"gid of {name!r} in the image's /etc/group")


def _groups(group: bytes) -> Iterator[tuple[str, str, list[str]]]:
    for fields in _entries(group, 4):
        yield fields[0], fields[2], fields[3].split(",")


def _entries(database: bytes, width: int) -> Iterator[list[str]]:
    """Yield the lines that have a name and a number, with missing last fields empty.

    Others (comments, NIS, damage) are nobody's entry.
    """
    for line in database.decode(errors="surrogateescape").split("\n"):
        fields = line.strip().split(":")
        if len(fields) >= 3 and fields[0] and not fields[0].startswith("#"):
            yield (fields + [""] * width)[:width]


def _same(text: str, number: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 20 and int(text) == number


def _number(text: str, field: str) -> int:
    # Python refuses to convert thousands of digits; nothing beyond 20 can be in range anyway.
    clean = text.lstrip("0") or "0"
    if not (text.isascii() and text.isdigit()) or len(clean) > 20 or int(clean) > MAX_ID:
        raise InvalidArgument(f"{field} {text[:40]!r}: must be a number from 0 to {MAX_ID}")
    return int(clean)


def _home(account: _Account | None) -> str:
    home = account.home if account else ""
    # It ends up in the environment; a damaged entry is no reason to fail, nor to be passed on.
    if not home.startswith("/") or any(ord(char) < 0x20 for char in home):
        return "/"
    return home


def _check_sizes(database: UserDatabase) -> None:
    for name, content in (("passwd", database.passwd), ("group", database.group)):
        if len(content) > MAX_DATABASE_BYTES:
            raise InvalidArgument(
                f"the image's /etc/{name} has {len(content)} bytes: at most {MAX_DATABASE_BYTES} are read"
            )
