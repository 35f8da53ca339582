"""Handlers of type oci keep the contract of a runtime backend, with Debian's runc and crun."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from support.namespaces import busybox_root
from support.oci import OciSubject

from polypod.backend.cgroups import Cgroups, discover
from polypod.testing.runtime_suite import CHECKS, Outcome, run_check

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay, pytest.mark.needs_busybox]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busybox_root(tmp_path_factory.mktemp("busybox"))


@pytest.fixture
async def subject(tmp_path, root, program, host):
    parent = f"/polypod-test-{secrets.token_hex(4)}"
    yield OciSubject(tmp_path, root, host, parent, program)
    Cgroups(discover().with_unified()).end(parent)


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("runc", marks=pytest.mark.needs_runc),
        pytest.param("crun", marks=pytest.mark.needs_crun),
    ],
)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_oci(check, subject):
    verdict = await run_check(check, subject)
    if verdict.outcome is Outcome.NOT_APPLICABLE:
        pytest.skip(verdict.detail)
    assert verdict.good, verdict.detail
