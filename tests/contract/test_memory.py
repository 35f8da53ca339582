"""The memory store and the memory network keep their contracts."""

from __future__ import annotations

import pytest

from polypod.testing import image_store_suite, network_suite
from polypod.testing.subjects import MemoryImageSubject, MemoryNetworkSubject
from polypod.testing.suite import Outcome


@pytest.mark.parametrize("check", image_store_suite.CHECKS, ids=lambda check: check.__name__)
async def test_memory_images(check, tmp_path):
    verdict = await image_store_suite.run_check(check, MemoryImageSubject(tmp_path / "images"))
    assert verdict.outcome is Outcome.PASSED, verdict.detail


@pytest.mark.parametrize("check", network_suite.CHECKS, ids=lambda check: check.__name__)
async def test_memory_network(check, tmp_path):
    verdict = await network_suite.run_check(check, MemoryNetworkSubject(tmp_path / "network"))
    assert verdict.outcome is Outcome.PASSED, verdict.detail
