"""Every hook has a test, and every test that is named for a hook names one that exists."""

import re

import polypod_meta_tree as tree

from polypod.plugin.hooks import Hooks

HOOKS = {name for name in vars(Hooks) if name.startswith("polypod_")}


def test_every_hook_has_a_test_of_its_name():
    text = "\n".join(path.read_text() for path in tree.sources("tests/unit/registry/"))
    tested = set(re.findall(r"def test_hook_(polypod_\w+)\(", text))
    assert tested == HOOKS


def test_no_plugin_of_the_tree_implements_a_hook_that_is_not_there():
    for path in tree.sources("core/", "plugins/", "tests/thirdparty/example_plugin/"):
        for qualified, _node in tree.functions(path):
            last = qualified.rpartition(".")[2]
            if last.startswith("polypod_"):
                assert last in HOOKS, tree.name(path)
