"""Print what each runtime type declares: ``python -m polypod.boot.backends_page > docs/backends.md``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping

from polypod.plugin.runtime import Feature, RuntimeType
from polypod.registry import Registry
from polypod.testing.runtime_suite import CHECKS

_HEAD = """# Backends

Generated from the installed plugins' descriptors by `python -m polypod.boot.backends_page` (`make docs`). Every
backend runs the same contract suite (`polypod.testing.runtime_suite`, {checks} checks); what it does not pass by
design it declares with the reason, and a declaration that is needless fails its tests.
"""
_FEATURES = """
## Features

What is not declared is refused with that reason before anything is made. A handler of a type that runs a
program of your choice has those of these features that the program has.
"""
_EXCEPTIONS = """
## Exceptions from the contract
"""


def render(types: Mapping[str, RuntimeType] | None = None) -> str:
    """Return the whole page; without types, of those that are installed."""
    offered = types if types is not None else Registry.load().runtime_types
    known = [offered[name] for name in sorted(offered)]
    lines = [
        _HEAD.format(checks=len(CHECKS)),
        "| type | what it is | root file system | namespaces made by core | exceptions |",
        "|---|---|---|---|---|",
        *(_row(each) for each in known),
        _FEATURES,
        f"| feature | {' | '.join(each.name for each in known)} |",
        f"|---|{'---|' * len(known)}",
        *(_feature(feature, known) for feature in Feature),
        _EXCEPTIONS,
        "| type | sentence of the contract | why not |",
        "|---|---|---|",
        *(row for each in known for row in _exceptions(each)),
    ]
    return "\n".join(lines) + "\n"


def _row(kind: RuntimeType) -> str:
    forms = ", ".join(kind.rootfs_forms)
    namespaces = ", ".join(sorted(kind.sandbox_namespaces)) or "none"
    count = len(kind.exceptions) or "none"
    return f"| `{kind.name}` | {kind.summary} | {forms} | {namespaces} | {count} |"


def _feature(feature: Feature, known: list[RuntimeType]) -> str:
    return f"| {feature} | {' | '.join('yes' if feature in each.features else '-' for each in known)} |"


def _exceptions(kind: RuntimeType) -> Iterator[str]:
    sentences = {check.__name__: inspect.getdoc(check) or "" for check in CHECKS}
    for name, reason in sorted(kind.exceptions.items()):
        said = sentences.get(name, name).partition("\n")[0]
        yield f"| `{kind.name}` | {said} (`{name}`) | {reason} |"


if __name__ == "__main__":
    sys.stdout.write(render())
