"""Files and functions stay small enough to be read."""

import polypod_meta_tree as tree

MAX_FILE = 600
MAX_FUNCTION = 60
TOPS = ("core/", "plugins/", "demo/", "bench/", "tests/")

LONG_FILES: dict[str, str] = {}
"""Path → why it may be longer."""
LONG_FUNCTIONS: dict[str, str] = {}
"""``path:qualified name`` → why."""


def test_no_file_is_too_long():
    long = {
        tree.name(path): lines
        for path in tree.sources(*TOPS)
        if (lines := len(path.read_text().splitlines())) > MAX_FILE
    }
    assert set(long) == set(LONG_FILES), f"lines per file: {long}; allowed: {LONG_FILES}"


def test_no_function_is_too_long():
    long = {}
    for path in tree.sources(*TOPS):
        for qualified, node in tree.functions(path):
            lines = node.end_lineno - node.lineno + 1
            if lines > MAX_FUNCTION:
                long[f"{tree.name(path)}:{qualified}"] = lines
    assert set(long) == set(LONG_FUNCTIONS), f"lines: {long}; allowed: {LONG_FUNCTIONS}"
