"""What is made of a run of the conformance suite: each skip has a kind, and one that nobody declared fails the run."""

import json
from dataclasses import replace

import pytest
from conformance import report
from conformance.__main__ import is_good
from conformance.report import Outcome, Skip
from conformance.subjects import CONVERSE, DECLARED, HOST, ONCE, Subject

from polypod.plugin.runtime import Feature

FACTS = {
    "type": "oci",
    "features": ["tty"],
    "protocols": ["Execs"],
    "exceptions": {},
    "unusable": "",
}


def case(name, inside="", module="tests.conformance.test_pod"):
    return f'<testcase classname="{module}" name="{name}" time="0.1">{inside}</testcase>'


def skipped(reason, place="/src/tests/conformance/test_pod.py:30"):
    said = f'<skipped type="pytest.skip" message="{reason}">{place}: {reason}</skipped>'
    return case(f"skipped {reason}", said)


@pytest.fixture
def written(tmp_path):
    """Writes a JUnit file and returns what is read from it."""

    def write(*cases, facts=FACTS):
        path = tmp_path / "runc.xml"
        value = json.dumps(facts).replace('"', "&quot;")
        path.write_text(
            f'<testsuites><testsuite name="pytest" time="12.5"><properties>'
            f'<property name="handler runc" value="{value}"/></properties>'
            f"{''.join(cases)}</testsuite></testsuites>"
        )
        return report.read("runc", path)

    return write


def test_a_good_run(written):
    found = written(case("a[runc]"), case("b[runc]"), skipped(f"{DECLARED}no tty"))
    assert found.good
    assert (found.passed, found.seconds, found.declared) == (2, 12.5, FACTS)
    assert found.skips == (Skip(f"test_pod::skipped {DECLARED}no tty", "declared", "no tty"),)


def test_a_test_that_fails_and_leaves_something_fails_once(written):
    bad = '<failure message="assert 1 == 2&#10;more">trace</failure>'
    behind = '<error message="failed on teardown">trace</error>'
    found = written(case("a"), case("b", bad), case("b", behind))
    assert not found.good
    assert (found.passed, dict(found.failures)) == (1, {"test_pod::b": "assert 1 == 2"})


@pytest.mark.parametrize(
    ("reason", "place", "kind"),
    [
        (f"{DECLARED}x", "/src/tests/conformance/subjects.py:99", "declared"),
        (f"{HOST}x", "/src/tests/conformance/subjects.py:99", "host"),
        (f"{CONVERSE}x", "/src/tests/conformance/subjects.py:99", "converse"),
        (f"{ONCE}x", "/src/tests/conformance/test_events.py:99", "once"),
        ("the kernel has no overlay", "/src/tests/conftest.py:133", "host"),
        ("somehow it does not work", "/src/tests/conformance/test_pod.py:30", "undeclared"),
        ("says the suite's own file", "/src/tests/conformance/conftest.py:30", "undeclared"),
    ],
)
def test_kinds_of_skips(written, reason, place, kind):
    found = written(case("a"), skipped(reason, place))
    assert [each.kind for each in found.skips] == [kind]
    assert found.good == (kind != "undeclared")


def test_an_undeclared_gap_is_named(written):
    found = written(case("a"), skipped("no idea"))
    assert "test_pod::skipped no idea: undeclared gap: no idea" in report.as_text([found])


def test_no_result_is_no_success(tmp_path, written):
    (tmp_path / "broken.xml").write_text("<testsuite")
    assert not report.read("runc", tmp_path / "absent.xml").good
    assert not report.read("runc", tmp_path / "broken.xml").good
    assert written().trouble == "no test was collected"
    assert not written(skipped(f"{DECLARED}everything")).good


def test_equal_failures_are_one_line(written):
    bad = '<error message="failed on setup">trace</error>'
    text = report.as_text([written(*(case(f"t{number}", bad) for number in range(9)))])
    assert "test_pod::t0, test_pod::t1" in text
    assert "and 4 more: failed on setup" in text
    assert text.count("failed on setup") == 1


def test_the_pages_tell_the_same(written):
    found = written(case("a"), skipped(f"{DECLARED}no tty"), skipped(f"{HOST}no overlay"))
    page = report.as_markdown([found], {"kernel": "6.1"})
    assert "| `runc` | 1 | 0 | 1 | 1 | 0 | 0 | 0 | 12 | ok |" in page
    assert "- declared, 1: no tty: `test_pod::skipped declared: no tty`" in page
    assert "Type `oci`; features tty; optional Protocols Execs." in page
    told = json.loads(report.as_json([found], {"kernel": "6.1"}))
    assert told["handlers"]["runc"]["good"] is True
    assert told["handlers"]["runc"]["declared"]["features"] == ["tty"]


def test_an_unusable_handler_counts_when_it_was_named():
    works = Outcome("sim", passed=3)
    cannot = Outcome("vm", trouble="unusable: no QEMU", declared={"unusable": "no QEMU"})
    fly = Outcome("fly", trouble="refused: no isolation")
    assert is_good([works, cannot, fly], [])
    assert not is_good([works, cannot], ["sim", "vm"])
    assert not is_good([works, fly], ["sim", "fly"])
    assert not is_good([cannot], [])
    assert not is_good([works, Outcome("vm", trouble="pytest ended with 3")], [])


def test_what_a_handler_declares_decides_what_is_skipped():
    subject = Subject("runc", "oci", features=frozenset({"tty"}), exceptions={"check_x": "why"})
    subject.needs(Feature.TTY)
    subject.needs_check("check_y")
    assert subject.can("RunPodSandbox")
    assert not subject.can("UpdatePodSandboxResources")
    for skipping in (
        lambda: subject.needs(Feature.SECCOMP),
        lambda: subject.needs_protocol("Resizable"),
        lambda: subject.needs_check("check_x"),
        lambda: replace(subject, type="simulator").needs_kernel(),
        lambda: replace(subject, networked=False).needs_network(),
    ):
        with pytest.raises(pytest.skip.Exception, match=f"^{DECLARED}handler runc"):
            skipping()
    with pytest.raises(pytest.skip.Exception, match=f"^{CONVERSE}.* offers tty"):
        subject.lacks(Feature.TTY)
    subject.lacks(Feature.SECCOMP)
