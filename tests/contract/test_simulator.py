"""The simulator keeps the contract of a runtime backend."""

from __future__ import annotations

import pytest

from polypod.testing import runtime_checks_forward
from polypod.testing.runtime_suite import CHECKS, Outcome, run_check
from polypod.testing.subjects import SimulatorSubject

_ITS_OWN = [each for each in CHECKS if each not in runtime_checks_forward.CHECKS]
"""Its sandboxes have no localhost that differs from that of their network namespace."""


@pytest.mark.parametrize("check", _ITS_OWN, ids=lambda check: check.__name__)
async def test_simulator(check, tmp_path):
    verdict = await run_check(check, SimulatorSubject(tmp_path))
    assert verdict.outcome is Outcome.PASSED, verdict.detail
