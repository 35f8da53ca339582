"""The contract in one import."""

from __future__ import annotations

import inspect
import pkgutil
import subprocess
import sys

import polypod.plugin
from polypod.plugin import Hooks, hooks, requests, runtime
from polypod.registry.discovery import HOOKS


def test_all_names_exist_and_are_sorted():
    names = polypod.plugin.__all__
    assert sorted(set(names)) == sorted(names)
    for name in names:
        assert getattr(polypod.plugin, name) is not None


def test_all_holds_every_public_class_of_the_contract():
    """``oci`` is exported as a module, because its names are the runtime-spec's."""
    renamed = {requests.Protocol: "PortProtocol"}
    for found in pkgutil.iter_modules(polypod.plugin.__path__):
        module = getattr(polypod.plugin, found.name)
        if module is polypod.plugin.oci:
            continue
        for name, value in vars(module).items():
            own = inspect.isclass(value) and value.__module__ == module.__name__
            if own and not name.startswith("_"):
                assert renamed.get(value, name) in polypod.plugin.__all__, name


def test_hooks_are_all_specified_and_documented():
    assert len(HOOKS) == 21
    for name in HOOKS:
        method = getattr(Hooks, name)
        assert hasattr(method, f"{hooks.PROJECT}_spec"), name
        assert (method.__doc__ or "").strip(), name


def test_only_choose_is_firstresult():
    first = [name for name in HOOKS if getattr(Hooks, name).polypod_spec["firstresult"]]
    assert first == ["polypod_choose_handler"]


def test_required_protocol_of_a_backend_has_not_grown():
    """It grows by optional Protocols only: a third party's backend must go on working."""
    methods = {name for name in vars(runtime.RuntimeBackend) if not name.startswith("_")}
    assert methods == {
        "create_sandbox",
        "stop_sandbox",
        "remove_sandbox",
        "create",
        "start",
        "kill",
        "delete",
        "update",
        "status",
        "list",
        "events",
        "close",
    }


def test_contract_imports_no_wire():
    """An author of a plugin needs neither grpc nor protobuf, and no part of the server."""
    code = "import sys, polypod.plugin; print('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = run.stdout.split()
    assert not [name for name in loaded if name.split(".")[0] in {"grpc", "google"}]
    allowed = ("polypod.plugin", "polypod.plan")
    ours = [name for name in loaded if name.startswith("polypod.")]
    assert not [name for name in ours if not name.startswith(allowed)]
