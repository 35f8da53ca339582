"""Token servers of a test's own: one inside a `LyingRegistry`'s rule, one whose tokens docker-registry takes."""

from __future__ import annotations

import base64
import json
import secrets
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from support.lying_registry import Asked, Reply


def basic(username: str, password: str) -> str:
    """Return the value of an Authorization header."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


@dataclass
class TokenServer:
    """A rule that wants a token for everything but ``/token``, which gives one to who is known.

    Args:
        realm: URL of the token server; its path must be ``/token``.
        username, password: who is known; empty lets everybody have a token.
        identity: a refresh token that is known.
        life_s: of a token, as ``expires_in`` tells it.
    """

    realm: str
    username: str = ""
    password: str = ""
    identity: str = ""
    life_s: int = 300
    service: str = "a registry"
    posts: bool = True
    """Whether it knows the oauth2 form."""
    issued: list[str] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    revoked: set[str] = field(default_factory=set)

    def __call__(self, asked: Asked, honest: Reply) -> Reply:
        """Serve ``/token``, or let through who has a token."""
        if asked.path == "/token":
            return self.serve(asked)
        token = asked.headers.get("authorization", "").removeprefix("Bearer ")
        if token in self.issued and token not in self.revoked:
            return honest
        parameters = f'realm="{self.realm}",service="{self.service}",scope="repository:x:pull"'
        return Reply(401, (("WWW-Authenticate", f"Bearer {parameters}"),), b'{"errors":[]}')

    def serve(self, asked: Asked) -> Reply:
        """Answer a request for a token."""
        self.asked.append(asked)
        if asked.method == "POST":
            if not self.posts:
                return Reply(404)
            known = bool(self.identity) and f"refresh_token={self.identity}" in asked.body.decode()
        else:
            given = asked.headers.get("authorization", "")
            known = given in {basic(self.username, self.password), basic("", self.identity)}
            known = known or not (self.username or self.identity)
        if not known:
            return Reply(401, (), b'{"details":"incorrect"}')
        token = secrets.token_hex(16)
        self.issued.append(token)
        document = {"token": token, "expires_in": self.life_s}
        return Reply(
            headers=(("Content-Type", "application/json"),), body=json.dumps(document).encode()
        )


def signed_token(
    certificate: Path, key: Path, *, issuer: str, service: str, repository: str
) -> str:
    """Return a token that docker-registry takes from an issuer whose certificate it was given.

    Spec:
        distribution's token specification: a JWT with ``access``; RS256; the certificate in ``x5c``.
    """
    pem = certificate.read_text()
    der = "".join(pem.partition("-----BEGIN CERTIFICATE-----")[2].partition("-----END")[0].split())
    head = {"typ": "JWT", "alg": "RS256", "x5c": [der]}
    now = int(time.time())
    claims = {
        "iss": issuer,
        "sub": "somebody",
        "aud": service,
        "exp": now + 300,
        "nbf": now - 10,
        "iat": now,
        "jti": secrets.token_hex(8),
        "access": [{"type": "repository", "name": repository, "actions": ["pull", "push"]}],
    }
    text = f"{_packed(head)}.{_packed(claims)}"
    signature = subprocess.run(
        ["openssl", "dgst", "-sha256", "-sign", str(key)],
        input=text.encode(),
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    return f"{text}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def _packed(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")
