"""What is generated is what its source gives today."""

import subprocess
import sys

import polypod_meta_tree as tree
import pytest

from polypod.boot import backends_page
from polypod.lifecycle import diagram
from polypod.registry import Registry
from polypod.testing.runtime_suite import CHECKS

OUT = tree.ROOT / "core" / "polypod" / "api" / "v1"


def test_the_state_diagram_is_current():
    page = tree.ROOT / "docs" / "lifecycle-states.md"
    assert page.read_text() == diagram.render(), "run `make docs`"


def test_the_table_of_backends_is_current():
    page = tree.ROOT / "docs" / "backends.md"
    assert page.read_text() == backends_page.render(), "run `make docs`"


def test_the_table_of_backends_has_every_declared_exception():
    text = backends_page.render()
    for kind in Registry.load().runtime_types.values():
        for name, reason in kind.exceptions.items():
            assert f"(`{name}`) | {reason} |" in text


def test_exceptions_name_checks_that_exist():
    names = {check.__name__ for check in CHECKS}
    for kind in Registry.load().runtime_types.values():
        assert set(kind.exceptions) <= names, kind.name


def test_the_protobuf_code_is_current(tmp_path):
    pytest.importorskip("grpc_tools", reason="grpcio-tools is a tool of developers")
    words = [
        *(sys.executable, "-m", "grpc_tools.protoc"),
        "-Ipolypod/api/v1=proto/runtime/v1",
        *(f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")),
        "polypod/api/v1/api.proto",
    ]
    subprocess.run(words, cwd=tree.ROOT, check=True)
    fresh = sorted((tmp_path / "polypod/api/v1").iterdir())
    assert len(fresh) == 3
    for path in fresh:
        assert path.read_text() == (OUT / path.name).read_text(), f"{path.name}: run `make proto`"


def test_the_messages_of_nri_are_current(tmp_path):
    pytest.importorskip("grpc_tools", reason="grpcio-tools is a tool of developers")
    words = [
        *(sys.executable, "-m", "grpc_tools.protoc"),
        "-Ipolypod_nri/wire=proto/nri/v1alpha1",
        *(f"--{kind}_out={tmp_path}" for kind in ("python", "pyi")),
        *("polypod_nri/wire/api.proto", "polypod_nri/wire/envelope.proto"),
    ]
    subprocess.run(words, cwd=tree.ROOT, check=True)
    fresh = sorted((tmp_path / "polypod_nri/wire").iterdir())
    assert len(fresh) == 4
    for path in fresh:
        committed = tree.ROOT / "plugins" / "nri" / "polypod_nri" / "wire" / path.name
        lines = path.read_text().splitlines()
        if path.suffix == ".pyi":  # a value of NRI's is called None, which no Python can spell
            lines = [line for line in lines if not line.lstrip().startswith("None: ")]
        assert lines == committed.read_text().splitlines(), f"{path.name}: run `make proto`"
