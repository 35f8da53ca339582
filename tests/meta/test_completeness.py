"""Nothing in the tree waits to be written, and nothing in it belongs to one machine."""

import ast
import re

import polypod_meta_tree as tree
import pytest

TOPS = ("core/", "plugins/", "demo/", "bench/")
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX)\b")
# Where this very checkout lies, or somebody's home, is nobody else's business.
PRIVATE = re.compile(rf"{re.escape(str(tree.ROOT))}\b|/home/\w+/")
HOOKS = "core/polypod/plugin/hooks.py"


def is_protocol(node: ast.ClassDef) -> bool:
    return any("Protocol" in ast.unparse(base) for base in node.bases)


def empty_functions(path):
    """Functions that do nothing and do not say so in their docstring, outside Protocols."""
    module = tree.syntax(path)
    promised = {
        id(function)
        for node in ast.walk(module)
        if isinstance(node, ast.ClassDef) and is_protocol(node)
        for function in node.body
    }
    for qualified, node in tree.functions(path):
        if id(node) in promised or any("overload" in ast.unparse(d) for d in node.decorator_list):
            continue
        body = node.body
        documented = isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
        if documented and body[0].value.value is not Ellipsis:
            body = body[1:]
            if not body:
                continue  # a docstring alone: "nothing to do", said in words
        if all(
            isinstance(each, ast.Pass)
            or (isinstance(each, ast.Raise) and "NotImplementedError" in ast.unparse(each))
            or (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
            for each in body
        ):
            yield qualified


def test_no_function_is_a_stub():
    found = [
        f"{tree.name(path)}:{name}"
        for path in tree.sources(*TOPS)
        for name in empty_functions(path)
    ]
    assert found == []


@pytest.mark.parametrize("pattern", [UNFINISHED, PRIVATE], ids=["unfinished", "private"])
def test_no_file_says(pattern):
    found = []
    for path in tree.files():
        if path.suffix not in {".py", ".md", ".toml", ".txt", ".proto"}:
            continue
        if path.parent.name == "meta" or tree.name(path).startswith(tree.GENERATED):
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{tree.name(path)}:{number}: {line.strip()}")
    assert found == []


def test_core_names_no_plugin():
    names = {
        path.parent.name
        for path in tree.files("pyproject.toml")
        if path.parents[1].name == "plugins"
    }
    assert "namespaces" in names
    plugins = re.compile(rf"polypod[_-]({'|'.join(sorted(names))})\b")
    found = [
        f"{tree.name(path)}: {match}"
        for path in tree.sources("core/")
        for match in plugins.findall(path.read_text())
    ]
    assert found == []
