"""What the guest loads late it must have: modules that its code imports inside functions are shipped."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import polypod_vm_child
from polypod_vm import guestpython

CHILD = Path(next(iter(polypod_vm_child.__path__)))


def is_module(name: str) -> bool:
    """Tell whether a dotted name is a module, not something in one."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def late_imports(path: Path) -> Iterator[str]:
    """Yield the modules of ours that functions of a file import."""
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = (f"{node.module}.{alias.name}" for alias in node.names)
                yield from (name if is_module(name) else node.module for name in names)
            elif isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)


def test_the_guest_has_what_it_imports_late():
    wanted = {
        name
        for path in CHILD.glob("guest_*.py")
        for name in late_imports(path)
        if name.startswith(("polypod.backend.", "polypod_vm_child.guest_"))
    }
    assert "polypod.backend.limits" in wanted
    assert wanted - set(guestpython._NEEDED) == set()
