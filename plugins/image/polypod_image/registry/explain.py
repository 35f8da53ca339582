"""What `polypod image explain` tells: every endpoint that a pull would ask, in order, and what each would see.

It reads the same rules by the same code as a pull, on the host where it runs; with ``--ask`` each endpoint is asked
for the manifest. No credential is ever shown.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from polypod.plugin.errors import PolypodError
from polypod.plugin.requests import Auth
from polypod_image.references import LOCALHOST, Reference, parse_reference
from polypod_image.registry.client import RegistryClient
from polypod_image.registry.credentials import NOBODY, Credential, credential_of, fits
from polypod_image.registry.failures import shown_url
from polypod_image.registry.hosts import PULL, RESOLVE, Endpoint, HostPlan, has_rule, plan
from polypod_image.registry.settings import PullOptions
from polypod_image.registry.tokens import Tokens
from polypod_image.registry.transport import Transport, proxy_for


@dataclass(frozen=True, slots=True)
class Step:
    """One endpoint of a pull."""

    url: str
    role: str
    asked_for: str
    credentials: str
    tls: str
    headers: tuple[str, ...]
    proxy: str
    dial_timeout_s: float
    answer: str = ""
    """What it said, if it was asked."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """All of a pull before it begins."""

    reference: str
    rule: str
    credential: str
    """Which field of the request it comes from."""
    steps: tuple[Step, ...]
    note: str = ""


async def explain(
    text: str, options: PullOptions, auth: Auth | None, *, ask: bool
) -> tuple[Explanation, bool]:
    """Return what a pull would do, and whether an endpoint that was asked has the image.

    Raises:
        InvalidArgument: no reference, or a malformed rule.
    """
    reference = parse_reference(text)
    if reference.domain == LOCALHOST and not has_rule(options.hosts_dir, LOCALHOST):
        note = f"{LOCALHOST}/… is what images made on this host are called: no registry is asked"
        return Explanation(str(reference), "", NOBODY.source, (), note), False
    hosts = plan(options.hosts_dir, reference.domain)
    credential = credential_of(auth, reference.domain)
    steps: list[Step] = []
    has_it = False
    for endpoint in hosts.endpoints:
        step = _step(endpoint, credential, reference)
        if ask:
            answer, had = await _asked(hosts, endpoint, reference, credential, options)
            step, has_it = replace(step, answer=answer), has_it or had
        steps.append(step)
    return Explanation(str(reference), hosts.rule, credential.source, tuple(steps)), has_it


def shown(found: Explanation) -> str:
    """Return an explanation for people."""
    lines = [found.reference]
    if found.note:
        return "\n".join([*lines, f"  {found.note}", ""])
    lines += [f"  rule: {found.rule}", f"  credentials: {found.credential}"]
    for number, step in enumerate(found.steps, 1):
        lines.append(f"  {number}. {step.url}  ({step.role})")
        facts = {
            "asked for": step.asked_for,
            "sees": step.credentials,
            "tls": step.tls,
            "headers": ", ".join(step.headers),
            "proxy": step.proxy,
            "connects within": f"{step.dial_timeout_s:g} s",
            "answer": step.answer,
        }
        lines += [f"       {name}: {value}" for name, value in facts.items() if value]
    return "\n".join([*lines, ""])


def _step(endpoint: Endpoint, credential: Credential, reference: Reference) -> Step:
    can = endpoint.capabilities
    by_tag = reference.digest is None
    if PULL not in can:
        asked_for = "nothing: it lacks the capability pull"
    elif by_tag and RESOLVE not in can:
        asked_for = "digests alone: it lacks the capability resolve"
    else:
        asked_for = f"manifest {reference.digest or reference.tag}, then blobs"
    seen = f"the {credential.source}" if fits(credential, endpoint) else "no credentials"
    if endpoint.origin.scheme == "http":
        tls = "none: plain HTTP"
    else:
        own = [f"authorities {', '.join(map(str, endpoint.tls.ca))}"] if endpoint.tls.ca else []
        own += ["client certificate"] if endpoint.tls.client else []
        own += ["NOT verified"] if endpoint.tls.skip_verify else []
        tls = "; ".join(own) or "verified by the system's authorities"
    return Step(
        url=shown_url(endpoint.base),
        role=_role(endpoint),
        asked_for=asked_for,
        credentials=seen,
        tls=tls,
        headers=tuple(sorted({name for name, _ in endpoint.headers})),
        proxy=shown_url(proxy) if (proxy := proxy_for(endpoint.base)) else "",
        dial_timeout_s=endpoint.dial_timeout_s,
    )


def _role(endpoint: Endpoint) -> str:
    if endpoint.is_itself:
        return "the registry itself"
    return f"{'mirror' if endpoint.mirror else 'its server'}, told ?ns={endpoint.namespace}"


async def _asked(
    hosts: HostPlan,
    endpoint: Endpoint,
    reference: Reference,
    credential: Credential,
    options: PullOptions,
) -> tuple[str, bool]:
    alone = replace(hosts, endpoints=(endpoint,))
    async with Transport(options.progress_timeout_s) as transport:
        tokens = Tokens(options.realms)
        client = RegistryClient(alone, reference, credential, transport, tokens, attempts=1)
        try:
            document = await client.manifest(str(reference.digest or reference.tag))
        except PolypodError as error:
            return str(error), False
    return f"{document.digest}, {document.media_type}", True
