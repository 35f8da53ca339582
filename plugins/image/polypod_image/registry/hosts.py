"""Which endpoints serve a registry's images: ``hosts.toml``, as containerd has it, read at each pull.

::

    HOSTS_DIR/registry.example:5000/hosts.toml     (or registry.example_5000_)
    HOSTS_DIR/_default/hosts.toml                  for every host without a directory of its own

    server = "https://registry.example:5000"       asked last; absent: the registry itself
    [host."https://mirror.example"]                asked first, in the order of the file
      capabilities = ["pull", "resolve"]           without "resolve" it is asked only by digest
      ca = "ca.pem"                                paths are relative to the file
      client = [["client.pem", "client.key"]]
      skip_verify = false
      override_path = false                        the URL's path is complete: no /v2 is added
      dial_timeout = "5s"
      [host."https://mirror.example".header]
        x-team = ["a"]
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from polypod.plugin.errors import InvalidArgument
from polypod_image.references import DOCKER_HUB
from polypod_image.registry.origins import Origin, is_loopback, origin_of

HUB_SERVER: Final = "registry-1.docker.io"
FILE: Final = "hosts.toml"
_DEFAULT: Final = "_default"
MAX_FILE: Final = 1 << 20
PULL: Final = "pull"
RESOLVE: Final = "resolve"
_CAPABILITIES: Final = frozenset({PULL, RESOLVE, "push", "referrers"})
DIAL_TIMEOUT_S: Final = 30.0
_KEYS: Final = frozenset(
    ["capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout"]
)
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Tls:
    """Whom to trust and who we are."""

    ca: tuple[Path, ...] = ()
    client: tuple[tuple[Path, Path | None], ...] = ()
    """(certificate, key); no key: it is in the certificate's file."""
    skip_verify: bool = False


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place that may have the images of a registry."""

    base: str
    """URL up to and with ``/v2``."""
    origin: Origin
    namespace: str
    """The registry's host as references name it."""
    mirror: bool
    """Neither the registry itself nor the ``server`` of its own file: gets no credentials."""
    capabilities: frozenset[str] = _CAPABILITIES
    tls: Tls = field(default_factory=Tls)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    dial_timeout_s: float = DIAL_TIMEOUT_S

    def url(self, path: str) -> str:
        """Return the URL of a path below ``/v2/``."""
        return f"{self.base}/{path}" + ("" if self.is_itself else f"?ns={self.namespace}")

    @property
    def is_itself(self) -> bool:
        """Return whether it is the host that references name; any other is told by ``?ns=`` whose it serves."""
        host = HUB_SERVER if self.namespace == DOCKER_HUB else self.namespace
        return origin_of(f"{self.origin.scheme}://{host}") == self.origin


@dataclass(frozen=True, slots=True)
class HostPlan:
    """The endpoints of one registry, in the order in which they are asked."""

    namespace: str
    rule: str
    """The file that says so, or why there is none."""
    endpoints: tuple[Endpoint, ...]


def plan(hosts_dir: Path, namespace: str) -> HostPlan:
    """Return the endpoints for a registry's host. Blocks: reads files.

    Raises:
        InvalidArgument: a ``hosts.toml`` is malformed; the text names file and key.
    """
    directory = _directory(hosts_dir, namespace)
    if directory is None:
        own = _own(namespace, "", {}, Path("/"))
        return HostPlan(namespace, f"no rule for it in {hosts_dir}", (own,))
    file = directory / FILE
    if not file.is_file():
        own = _own(namespace, "", {}, directory, _certificates(directory))
        return HostPlan(namespace, f"{directory} (certificates only)", (own,))
    table = _read(file)
    known = {"server", "host", *_KEYS}
    for key in table:
        if key not in known:
            raise InvalidArgument(f"{file}: unknown key {key!r}; known are {sorted(known)}")
    hosts = table.get("host", {})
    if not isinstance(hosts, dict):
        raise InvalidArgument(f'{file}: host: write [host."https://…"]')
    mirrors = [_endpoint(url, namespace, values, file) for url, values in hosts.items()]
    server = table.get("server", "")
    if not isinstance(server, str):
        raise InvalidArgument(f"{file}: server: a URL was expected")
    own = _own(namespace, server, {k: table[k] for k in _KEYS if k in table}, file)
    same = [each for each in mirrors if each.base == own.base]
    return HostPlan(namespace, str(file), (*mirrors, *(() if same else (own,))))


def has_rule(hosts_dir: Path, namespace: str) -> bool:
    """Return whether there is a directory for this very host. Blocks."""
    found = _directory(hosts_dir, namespace)
    return found is not None and found.name != _DEFAULT


def _directory(hosts_dir: Path, namespace: str) -> Path | None:
    host, colon, port = namespace.rpartition(":")
    names = [namespace, *([f"{host}_{port}_"] if colon and port.isdigit() else []), _DEFAULT]
    for name in names:
        # The host is checked by the grammar of references: it has no slash and is not "..".
        if (hosts_dir / name).is_dir():
            return hosts_dir / name
    return None


def _read(file: Path) -> Mapping[str, object]:
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE + 1)
        if len(data) > MAX_FILE:
            raise InvalidArgument(f"{file}: larger than {MAX_FILE} bytes")
        return tomllib.loads(data.decode())
    except OSError as error:
        raise InvalidArgument(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidArgument(f"{file}: {error}") from error


def _own(
    namespace: str, server: str, values: Mapping[str, object], file: Path, tls: Tls | None = None
) -> Endpoint:
    """Return the endpoint of the registry itself: what ``server`` says, else its own name."""
    if not server:
        host = HUB_SERVER if namespace == DOCKER_HUB else namespace
        split = urlsplit(f"//{host}")
        # Plain HTTP only where no network can listen, or where somebody wrote it.
        plain = is_loopback(split.hostname or "") and split.port != 443
        server = f"{'http' if plain else 'https'}://{host}"
    endpoint = _endpoint(server, namespace, values, file, own=True)
    if tls is None:
        return endpoint
    return Endpoint(endpoint.base, endpoint.origin, namespace, mirror=False, tls=tls)


def _endpoint(
    url: str, namespace: str, values: object, file: Path, *, own: bool = False
) -> Endpoint:
    what = f"{file}: server" if own else f'{file}: host."{url}"'
    if not isinstance(values, dict):
        raise InvalidArgument(f"{what}: a table was expected")
    for key in values:
        if key not in _KEYS:
            raise InvalidArgument(f"{what}: unknown key {key!r}; known are {sorted(_KEYS)}")
    full = url if "://" in url else f"https://{url}"
    try:
        origin = origin_of(full)
    except InvalidArgument as error:
        raise InvalidArgument(f"{what}: {error}") from None
    parts = urlsplit(full)
    if parts.query or parts.fragment:
        raise InvalidArgument(f"{what}: a URL without query was expected")
    path = parts.path.rstrip("/")
    if not _flag(values, "override_path", what) and not path.endswith("/v2"):
        path += "/v2"
    # The server of _default serves all the world: it is nobody's own.
    own = own and file.parent.name != _DEFAULT
    found = Endpoint(
        base=f"{origin}{path}",
        origin=origin,
        namespace=namespace,
        mirror=not own,
        capabilities=_capabilities(values, what),
        tls=_tls(values, what, file.parent),
        headers=_headers(values, what),
        dial_timeout_s=_duration(values, what),
    )
    return replace(found, mirror=found.mirror and not found.is_itself)


def _capabilities(values: Mapping[str, object], what: str) -> frozenset[str]:
    found = _texts(values.get("capabilities", []), f"{what}: capabilities")
    for each in found:
        if each not in _CAPABILITIES:
            raise InvalidArgument(
                f"{what}: capabilities: {each!r} is none of {sorted(_CAPABILITIES)}"
            )
    return frozenset(found) or _CAPABILITIES


def _tls(values: Mapping[str, object], what: str, base: Path) -> Tls:
    ca = tuple(base / each for each in _texts(values.get("ca", []), f"{what}: ca"))
    return Tls(
        ca, _clients(values.get("client", []), what, base), _flag(values, "skip_verify", what)
    )


def _clients(value: object, what: str, base: Path) -> tuple[tuple[Path, Path | None], ...]:
    """Read ``client``: a file, a list of files, or a list of [certificate, key]."""
    entries = value if isinstance(value, list) else [value]
    pairs: list[tuple[Path, Path | None]] = []
    for entry in entries:
        words = _texts(entry, f"{what}: client")
        if len(words) not in (1, 2):
            raise InvalidArgument(f"{what}: client: write [CERTIFICATE, KEY] or a file")
        key = base / words[1] if len(words) == 2 and words[1] else None
        pairs.append((base / words[0], key))
    return tuple(pairs)


def _certificates(directory: Path) -> Tls:
    """Read a directory without ``hosts.toml`` as docker's ``certs.d``: NAME.crt, NAME.cert + NAME.key."""
    names = sorted(directory.iterdir())
    client = tuple(
        (each, key if (key := each.with_suffix(".key")).exists() else None)
        for each in names
        if each.suffix == ".cert"
    )
    return Tls(tuple(each for each in names if each.suffix == ".crt"), client)


def _headers(values: Mapping[str, object], what: str) -> tuple[tuple[str, str], ...]:
    table = values.get("header", {})
    if not isinstance(table, dict):
        raise InvalidArgument(f"{what}: header: a table was expected")
    found: list[tuple[str, str]] = []
    for name, value in table.items():
        for each in _texts(value, f"{what}: header.{name}"):
            if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) or not each.isprintable():
                raise InvalidArgument(f"{what}: header.{name}: no header of HTTP")
            found.append((name, each))
    return tuple(found)


def _duration(values: Mapping[str, object], what: str) -> float:
    value = values.get("dial_timeout")
    if value is None:
        return DIAL_TIMEOUT_S
    parts = _DURATION.findall(value) if isinstance(value, str) else []
    if not parts or "".join(number + unit for number, unit in parts) != value:
        raise InvalidArgument(f"{what}: dial_timeout: {value!r}: write a time such as '5s'")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not 0 < seconds <= 3600:
        raise InvalidArgument(f"{what}: dial_timeout: more than 0 and at most 1h")
    return seconds


def _flag(values: Mapping[str, object], key: str, what: str) -> bool:
    value = values.get(key, False)
    if not isinstance(value, bool):
        raise InvalidArgument(f"{what}: {key}: true or false was expected")
    return value


def _texts(value: object, what: str) -> Sequence[str]:
    found: list[str] = []
    for each in value if isinstance(value, list) else [value]:
        if not isinstance(each, str) or "\0" in each:
            raise InvalidArgument(f"{what}: a string or a list of strings was expected")
        found.append(each)
    return found
