"""What a run of the suite on one handler came to: read from pytest's JUnit file, told as text, JSON and Markdown."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from conformance.subjects import CONVERSE, DECLARED, HOST, ONCE

KINDS = {"declared": DECLARED, "host": HOST, "converse": CONVERSE, "once": ONCE}
"""Why a test may be skipped → how its reason begins. Any other skip is an undeclared gap."""
MEANING = {
    "declared": "the handler's descriptor says that it cannot",
    "host": "this host lacks what the test takes",
    "converse": "the test is of a refusal, and this handler or host offers the thing",
    "once": "the test is of the server alone, and runs on one handler",
    "undeclared": "nobody declared it: the run fails",
}
_SHOWN = 5
_PROBES = "tests/conftest.py:"
_PLACE = re.compile(r"^(?P<place>\S+?:\d+): (?P<reason>.*)", re.DOTALL)


@dataclass(frozen=True)
class Skip:
    """A test that did not run."""

    test: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """One handler's run."""

    handler: str
    passed: int = 0
    failures: Mapping[str, str] = field(default_factory=dict)
    """Test → the first line of what went wrong, in it or behind it."""
    skips: Sequence[Skip] = ()
    seconds: float = 0.0
    declared: Mapping[str, Any] = field(default_factory=dict)
    """What the handler declares: see `conformance.subjects.Subject.declared`."""
    trouble: str = ""
    """Why there is no result at all: refused, unusable, or pytest did not come to its end."""

    @property
    def good(self) -> bool:
        """Whether it passed, skipped nothing undeclared, and ran at all."""
        return bool(self.passed) and not (self.trouble or self.failures or self.gaps)

    @property
    def gaps(self) -> list[Skip]:
        """The skips that nobody declared."""
        return [each for each in self.skips if each.kind == "undeclared"]

    def count(self, kind: str) -> int:
        """Return the number of skips of a kind."""
        return sum(each.kind == kind for each in self.skips)


def read(handler: str, path: Path) -> Outcome:
    """Read a run's JUnit file. A file that is missing or broken means that pytest did not end well."""
    try:
        root = ET.parse(path).getroot()
    except (OSError, ET.ParseError) as error:
        return Outcome(handler, trouble=f"pytest wrote no result: {error}")
    suite = root if root.tag == "testsuite" else root.find("testsuite")
    if suite is None:
        return Outcome(handler, trouble="pytest wrote a result without a suite")
    failures: dict[str, str] = {}
    skips = []
    tests = set()
    for case in suite.iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name', '')}"
        tests.add(name)
        for bad in (*case.findall("failure"), *case.findall("error")):
            failures.setdefault(name, _first_line(bad.get("message") or bad.text or ""))
        skips += [_skip(name, each) for each in case.findall("skipped")]
    declared = _declared(handler, suite)
    passed = len(tests - failures.keys() - {each.test for each in skips})
    trouble = "" if tests else "no test was collected"
    if declared.get("unusable"):
        trouble = f"unusable: {declared['unusable']}"
    seconds = float(suite.get("time", "0"))
    return Outcome(handler, passed, failures, tuple(skips), seconds, declared, trouble)


def _declared(handler: str, suite: ET.Element) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in suite.iter("property"):
        if each.get("name") == f"handler {handler}":
            found = json.loads(each.get("value") or "{}")
    return found


def _skip(test: str, element: ET.Element) -> Skip:
    """Tell why a test was skipped: its own word, or the probe of a marker that it bears."""
    said = _PLACE.match(element.text or "")
    place = said["place"] if said else ""
    reason = element.get("message") or ""
    if _PROBES in f"{place}:":
        return Skip(test, "host", reason)
    for kind, begins in KINDS.items():
        if reason.startswith(begins):
            return Skip(test, kind, reason.removeprefix(begins))
    return Skip(test, "undeclared", reason)


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:300]


def as_text(outcomes: Iterable[Outcome]) -> str:
    """Return the table, and whatever is not good."""
    rows = [("handler", "passed", "failed", *MEANING, "seconds", "")]
    more = []
    for each in outcomes:
        kinds = (str(each.count(kind)) for kind in MEANING)
        figures = (str(each.passed), str(len(each.failures)), *kinds, f"{each.seconds:.0f}")
        rows.append((each.handler, *figures, each.trouble or ("ok" if each.good else "NOT OK")))
        more += _grouped(each)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    meanings = [f"{kind:10}  skipped: {meaning}" for kind, meaning in MEANING.items()]
    return "\n".join([*lines, "", *meanings, *([""] if more else []), *more])


def _grouped(outcome: Outcome) -> list[str]:
    """Return a line for each thing that went wrong, however many tests it made fail."""
    tests: dict[str, list[str]] = {}
    for test, what in outcome.failures.items():
        tests.setdefault(what, []).append(test)
    for gap in outcome.gaps:
        tests.setdefault(f"undeclared gap: {gap.reason}", []).append(gap.test)
    return [
        f"{outcome.handler}: {', '.join(names[:_SHOWN])}"
        f"{f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''}: {what}"
        for what, names in tests.items()
    ]


def as_markdown(outcomes: Sequence[Outcome], facts: Mapping[str, object]) -> str:
    """Return the same with every skip named."""
    lines = ["# CRI conformance", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    columns = ["passed", "failed", *MEANING, "seconds", "result"]
    lines += [f"| handler | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for each in outcomes:
        kinds = [str(each.count(kind)) for kind in MEANING]
        result = each.trouble or ("ok" if each.good else "**not ok**")
        cells = [str(each.passed), str(len(each.failures)), *kinds, f"{each.seconds:.0f}", result]
        lines.append(f"| `{each.handler}` | {' | '.join(cells)} |")
    lines += ["", *(f"- **{kind}**: {meaning}" for kind, meaning in MEANING.items())]
    for each in outcomes:
        lines += _details(each)
    return "\n".join(lines) + "\n"


def _details(outcome: Outcome) -> list[str]:
    if not (outcome.failures or outcome.skips):
        return []
    lines = ["", f"## {outcome.handler}", ""]
    if outcome.declared:
        lines += [
            f"Type `{outcome.declared['type']}`; features {_words(outcome.declared['features'])}; "
            f"optional Protocols {_words(outcome.declared['protocols'])}.",
            "",
        ]
    lines += [f"- failed: `{test}`: {what}" for test, what in outcome.failures.items()]
    reasons = Counter((each.kind, each.reason) for each in outcome.skips)
    for (kind, reason), count in sorted(reasons.items()):
        tests = [each.test for each in outcome.skips if (each.kind, each.reason) == (kind, reason)]
        shown = ", ".join(f"`{test}`" for test in tests[:_SHOWN]) + (" …" if count > _SHOWN else "")
        lines.append(f"- {kind}, {count}: {reason}: {shown}")
    return lines


def _words(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def as_json(outcomes: Sequence[Outcome], facts: Mapping[str, object]) -> str:
    """Return everything."""
    rows = {each.handler: {**asdict(each), "good": each.good} for each in outcomes}
    return json.dumps({"facts": facts, "handlers": rows}, indent=1)
