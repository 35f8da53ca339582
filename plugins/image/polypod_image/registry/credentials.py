"""Which credential of a PullImage request goes to which endpoint.

Spec:
    kubernetes/cri-api api.proto, AuthConfig; precedence and ``server_address`` as in cri.md A.2, PullImage:
    user and password, identity token, ``auth``; then a registry token. Reliability I7.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import Final

from polypod.plugin.errors import InvalidArgument
from polypod.plugin.requests import Auth
from polypod_image.references import DOCKER_HUB
from polypod_image.registry.hosts import HUB_SERVER, Endpoint

_HUB_NAMES: Final = frozenset({DOCKER_HUB, HUB_SERVER, "index.docker.io"})
MAX_SECRET: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Credential:
    """Who we are; ``repr`` shows nothing of it."""

    source: str = "none"
    """Which field of the request it comes from: fit to be shown."""
    host: str = ""
    """The one host that may see it."""
    username: str = field(default="", repr=False)
    secret: str = field(default="", repr=False)
    """Password or identity token (then there is no user)."""
    bearer: str = field(default="", repr=False)
    """A ready token."""

    @property
    def is_identity(self) -> bool:
        """Return whether the secret is an identity token."""
        return bool(self.secret) and not self.username

    def basic(self) -> str:
        """Return the value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.secret}".encode()).decode()


NOBODY: Final = Credential()


def credential_of(auth: Auth | None, namespace: str) -> Credential:
    """Return what of a request's AuthConfig may be used for a registry.

    Args:
        auth: of the request.
        namespace: the registry's host, as the reference names it.

    Raises:
        InvalidArgument: ``auth`` is no base64 of USER:PASSWORD. The text does not show it.
    """
    if auth is None:
        return NOBODY
    host = _host(auth.server_address) or namespace.lower()
    if auth.username:
        return _checked(Credential("username", host, auth.username, auth.password))
    if auth.identity_token:
        return _checked(Credential("identity_token", host, secret=auth.identity_token))
    if auth.auth:
        username, secret = _decoded(auth.auth)
        return _checked(Credential("auth", host, username, secret))
    if auth.registry_token:
        return _checked(Credential("registry_token", host, bearer=auth.registry_token))
    return NOBODY


def fits(credential: Credential, endpoint: Endpoint) -> bool:
    """Return whether an endpoint may see a credential.

    One that names a mirror by ``server_address`` goes to that mirror; any other only to the registry itself,
    wherever the administrator's ``server`` says that it is.
    """
    if credential == NOBODY:
        return False
    if not endpoint.mirror and _same(credential.host, endpoint.namespace):
        return True
    return _same(credential.host, endpoint.origin.authority)


def _same(one: str, other: str) -> bool:
    return one == other.lower() or (one in _HUB_NAMES and other.lower() in _HUB_NAMES)


def _host(address: str) -> str:
    """Return the host of a ``server_address``: a host, or a URL such as ``https://index.docker.io/v1/``."""
    rest = address.strip().partition("://")[2] or address.strip()
    return rest.partition("/")[0].rpartition("@")[2].lower()


def _decoded(text: str) -> tuple[str, str]:
    try:
        plain = base64.b64decode(text, validate=True).decode()
    except (binascii.Error, ValueError):
        raise InvalidArgument("auth.auth: not base64 of USER:PASSWORD") from None
    username, colon, secret = plain.partition(":")
    if not colon:
        raise InvalidArgument("auth.auth: not base64 of USER:PASSWORD")
    return username, secret.strip("\0")


def _checked(credential: Credential) -> Credential:
    values = (credential.username, credential.secret, credential.bearer)
    if any(len(each) > MAX_SECRET for each in values):
        raise InvalidArgument(f"auth.{credential.source}: longer than {MAX_SECRET} characters")
    if not credential.bearer.isprintable() or not credential.bearer.isascii():
        raise InvalidArgument("auth.registry_token: no token that a header can carry")
    if ":" in credential.username:
        raise InvalidArgument("auth.username: must not hold a colon")
    return credential
