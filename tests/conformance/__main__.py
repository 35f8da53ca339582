"""``make conformance``: the suite on one handler after the other, and a report of what each of them does."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from conformance import report
from conformance.report import Outcome
from conformance.subjects import BUILT_IN, REFUSED

from polypod.config import load

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OUT = HERE / "out"
_EPILOG = """\
A handler that is not named and cannot be used here is shown with its reason; one that is named must work.
Skips are told by kind: declared by the handler, a lack of the host, the converse of what is tested. A skip
of no such kind is an undeclared gap and fails the run, as a failed test does.

examples:
  make conformance                                     every handler of this host; the machines take long
  make conformance HANDLERS="runc crun"                these two
  make conformance HANDLERS=vm ARGS="-k streaming"     words after the options go to pytest
  make conformance ARGS="--config /tmp/mine.toml"      the handlers of a configuration: a type of your own
"""


def main() -> int:
    """Return 0 if every handler that was asked for is good."""
    args, more = _parser().parse_known_args()
    known = dict(load(args.config).handlers) if args.config else dict(BUILT_IN)
    named = args.handlers.replace(",", " ").split()
    unknown = sorted(set(named) - known.keys() - REFUSED.keys())
    if unknown:
        sys.exit(f"conformance: no handler {unknown[0]!r}; there are {', '.join(known)}")
    facts = _facts()
    args.out.mkdir(parents=True, exist_ok=True)
    outcomes = [_refused(name) or _run(name, args, more) for name in named or [*known, *REFUSED]]
    stem = args.out / datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    stem.with_suffix(".json").write_text(report.as_json(outcomes, facts))
    stem.with_suffix(".md").write_text(report.as_markdown(outcomes, facts))
    print(report.as_text(outcomes))
    print(f"\nreport: {stem}.md, {stem.name}.json")
    return int(not is_good(outcomes, named))


def is_good(outcomes: Sequence[Outcome], named: Sequence[str]) -> bool:
    """Tell whether the run is: some handler passed, and none failed that works or was asked for by name."""
    judged = [each for each in outcomes if each.handler in named or not _cannot(each)]
    return bool(judged) and all(each.good for each in judged)


def _cannot(outcome: Outcome) -> bool:
    """Tell whether a handler did not run for a reason that it gave."""
    return outcome.handler in REFUSED or bool(outcome.declared.get("unusable"))


def _refused(name: str) -> Outcome | None:
    if name not in REFUSED:
        return None
    print(f"conformance: {name}: not run: {REFUSED[name]}", flush=True)
    return Outcome(name, trouble=f"refused: {REFUSED[name]}")


def _run(name: str, args: argparse.Namespace, more: Sequence[str]) -> Outcome:
    """Run the suite on one handler; its output goes to a file beside the report."""
    junit, log = args.out / f"{name}.xml", args.out / f"{name}.log"
    junit.unlink(missing_ok=True)
    print(f"conformance: {name} … (tail -f {log})", flush=True)
    words = ["-m", "pytest", str(HERE), "-q", f"--junitxml={junit}", *more]
    environment = {**os.environ, "POLYPOD_CONFORMANCE_HANDLERS": name}
    if args.config:
        environment["POLYPOD_CONFORMANCE_CONFIG"] = str(args.config)
    with log.open("wb") as file:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            check=False,
        )
    found = report.read(name, junit)
    if done.returncode not in {0, 1} and not found.trouble:
        return Outcome(name, trouble=f"pytest ended with {done.returncode}: see {log}")
    return found


def _facts() -> dict[str, object]:
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make conformance",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(BUILT_IN)
    parser.add_argument("--handlers", default="", help=f"of {names}; default: all of them")
    parser.add_argument("--config", type=Path, metavar="FILE", help="take handlers from this file")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="for reports and logs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
