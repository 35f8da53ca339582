"""How our programs beside the daemon are executed: relay and libvirtd, by the supervisor."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from polypod.plan import operations as op
from polypod.plan.operations import Operation, Plan
from polypod.plugin import BackendError

_CODE: Final = (
    "import sys; sys.path[:0] = sys.argv[1:3];"
    " from polypod_vm_child.{name} import main; main(sys.argv[3:])"
)
_ENV: Final = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8")


def plan(
    name: str, *arguments: str, log: str, network: str = "", cgroups: Sequence[str] = ()
) -> Plan:
    """Return the launch plan of a program.

    Args:
        name: of the module in ``polypod_vm_child``.
        arguments: for its ``main``.
        log: source of what it says.
        network: source of the network namespace that it lives in; ``""`` = the host's.
        cgroups: sources of the files by which it joins its cgroup.
    """
    joined = [["network", network]] if network else []
    operations: list[Operation] = [
        op.JoinCgroups(sources=list(cgroups)),
        op.JoinNamespaces(items=joined, kinds=[], pidfd=""),
        op.StartSession(),
        op.UseStdio(stdin="", stdout=log, stderr=log, uid=-1),
        op.CloseDescriptors(),
        op.ChangeDirectory(path="/"),
        op.Execute(args=[*_command(name), *arguments], env=list(_ENV), search=False),
    ]
    return Plan(0, operations)


def _command(name: str) -> list[str]:
    python = getattr(sys, "_base_executable", "") or sys.executable
    roots = [_root("polypod"), _root("polypod_vm_child")]
    return [python, "-I", "-S", "-E", "-B", "-c", _CODE.format(name=name), *roots]


def _root(package: str) -> str:
    """Return the directory that holds a package; it is executed, never imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise BackendError(f"package {package} is not installed")
    return str(Path(next(iter(spec.submodule_search_locations))).resolve().parent)
