"""The VM backend keeps the contract of a runtime backend, with real machines."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
from itertools import zip_longest
from pathlib import Path

import pytest
from support.vm import VmSubject, busybox_image

from polypod.backend.cgroups import Cgroups, discover
from polypod.testing import suite
from polypod.testing.runtime_suite import CHECKS, Outcome, run_check
from polypod_vm.plugin import missing

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_busybox,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(missing()), reason="; ".join(missing())),
    pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="mkfs.erofs is not installed"),
]


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """An emulated guest on a busy host boots slowly; nothing is measured against this."""
    monkeypatch.setattr(suite, "PATIENCE_S", 90.0)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """What takes long to make, once for each of two handlers."""
    return [tmp_path_factory.mktemp("vm") for _ in range(2)]


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    return busybox_image(tmp_path_factory.mktemp("image"))


@pytest.fixture
async def subjects(roots, image, host, other_host):
    directories = [Path(tempfile.mkdtemp(prefix="polypod-vm-")) for _ in roots]
    hosts = (host, other_host)
    parent = f"/polypod-test-{secrets.token_hex(4)}"
    yield [
        VmSubject(directory, root, image, each, parent)
        for directory, root, each in zip(directories, roots, hosts, strict=True)
    ]
    Cgroups(discover()).remove(parent)
    for directory in directories:
        shutil.rmtree(directory)


PAIRS = list(zip_longest(CHECKS[::2], CHECKS[1::2]))
"""A guest that is emulated has one processor's speed, and hosts have two."""


@pytest.mark.parametrize(
    "pair", PAIRS, ids=lambda pair: "+".join(each.__name__ for each in pair if each is not None)
)
async def test_vm(pair, subjects):
    verdicts = await asyncio.gather(
        *(run_check(check, subject) for check, subject in zip(pair, subjects, strict=True) if check)
    )
    bad = [verdict.detail for verdict in verdicts if not verdict.good]
    assert bad == []
    if all(verdict.outcome is Outcome.NOT_APPLICABLE for verdict in verdicts):
        pytest.skip("; ".join(verdict.detail for verdict in verdicts))
