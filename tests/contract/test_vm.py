"""The VM backend keeps the contract of a runtime backend, with real machines."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from support.vm import VmSubject, busybox_image

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
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("vm")


@pytest.fixture(scope="module")
def image(shared: Path) -> Path:
    return busybox_image(shared)


@pytest.fixture
async def subject(shared, image, host):
    directory = Path(tempfile.mkdtemp(prefix="polypod-vm-"))
    yield VmSubject(directory, shared, image, host)
    shutil.rmtree(directory)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_vm(check, subject):
    verdict = await run_check(check, subject)
    if verdict.outcome is Outcome.NOT_APPLICABLE:
        pytest.skip(verdict.detail)
    assert verdict.good, verdict.detail
