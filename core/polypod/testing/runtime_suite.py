"""The contract of a runtime backend as checks, the same for first- and third-party backends.

A test of a plugin is this much::

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    async def test_my_backend(check, subject):
        verdict = await run_check(check, subject)
        if verdict.outcome is Outcome.NOT_APPLICABLE:
            pytest.skip(verdict.detail)
        assert verdict.good, verdict.detail

``subject`` is a `RuntimeSubject`. Checks that a backend does not pass by design stand in
`RuntimeType.exceptions` with the reason; one that passes nevertheless is reported as needless.
"""

from polypod.testing import (
    runtime_checks_exec,
    runtime_checks_forward,
    runtime_checks_lifecycle,
    runtime_checks_process,
    runtime_checks_recovery,
    runtime_checks_resources,
)
from polypod.testing.runtime_lab import (
    Box,
    Check,
    RuntimeLab,
    RuntimeSubject,
    Wanted,
    run_check,
)
from polypod.testing.suite import Outcome, Verdict

__all__ = [
    "CHECKS",
    "Box",
    "Check",
    "Outcome",
    "RuntimeLab",
    "RuntimeSubject",
    "Verdict",
    "Wanted",
    "run_check",
]

CHECKS: tuple[Check, ...] = (
    *runtime_checks_lifecycle.CHECKS,
    *runtime_checks_process.CHECKS,
    *runtime_checks_exec.CHECKS,
    *runtime_checks_forward.CHECKS,
    *runtime_checks_recovery.CHECKS,
    *runtime_checks_resources.CHECKS,
)
