"""The simulator keeps the contract of a runtime backend."""

from __future__ import annotations

import pytest

from polypod.testing.runtime_suite import CHECKS, Outcome, run_check
from polypod.testing.subjects import SimulatorSubject


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_simulator(check, tmp_path):
    verdict = await run_check(check, SimulatorSubject(tmp_path))
    assert verdict.outcome is Outcome.PASSED, verdict.detail
