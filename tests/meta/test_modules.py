"""Every module can be imported on its own account, and every package is typed."""

import importlib
import sys

import polypod_meta_tree as tree
import pytest

EXECUTED = {"polypod.supervisor.__main__"}


def modules():
    for path in tree.sources("core/polypod/", "plugins/"):
        parts = path.relative_to(tree.ROOT).with_suffix("").parts
        start = next(i for i, part in enumerate(parts) if part.startswith("polypod"))
        dotted = ".".join(parts[start:]).removesuffix(".__init__")
        if dotted not in EXECUTED:
            yield dotted


@pytest.mark.parametrize("name", list(modules()))
def test_it_imports(name):
    try:
        found = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "libvirt":
            raise
        pytest.skip(
            "libvirt's Python binding is not installed: it is built against the host's libvirt"
        )
    assert found is sys.modules[name]


def test_every_distribution_is_typed():
    for package in ("core/polypod", *tree.ROOT.glob("plugins/*/polypod_*")):
        assert (tree.ROOT / package / "py.typed").is_file(), package
