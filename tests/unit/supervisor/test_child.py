"""The table of executors and the page that carries a failure."""

import errno
import os

from polypod.plan import operations as op
from polypod.supervisor import child


def plan(*first):
    return op.Plan(0, [*first, op.Execute(args=["true"], env=[], search=True)])


def test_every_operation_has_an_executor():
    assert set(child.EXECUTORS) == set(op.OPERATIONS.values())


def test_report_names_the_operation_and_keeps_the_errno():
    report = child.Report()
    report.step(0)
    made = plan(op.ChangeDirectory(path="/there"))
    report.fail(made, 0, errno.EACCES, "it is not allowed")
    failure = report.failure(made)
    assert failure.errno == errno.EACCES
    assert "operation 0: change to working directory /there: it is not allowed" in str(failure)
    report.close()


def test_report_of_a_child_that_executes_is_no_failure():
    report = child.Report()
    report.executing(0)
    assert report.failure(plan()) is None
    report.close()


def test_report_of_a_child_that_was_killed_says_where():
    report = child.Report()
    report.step(1)
    failure = report.failure(plan(op.StartSession()))
    assert "execute" in str(failure)
    assert "killed" in str(failure)
    report.close()


def test_report_cuts_a_long_text_instead_of_breaking():
    report = child.Report()
    made = plan(op.StartSession())
    report.fail(made, 0, errno.EINVAL, "x" * 100_000)
    assert "xxx" in str(report.failure(made))
    report.close()


def test_report_that_is_handed_over_is_read_by_another_supervisor():
    report = child.Report(keepable=True)
    made = plan(op.StartSession())
    report.fail(made, 1, errno.ENOENT, "it is missing")
    other = child.Report(fd=os.dup(report.fd))
    assert str(other.failure(None)) == "[Errno 2] it is missing"
    report.close()
    other.close()
