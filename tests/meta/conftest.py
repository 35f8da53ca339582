"""Makes `tree` importable by the tests beside it."""

import importlib.util
import sys
from pathlib import Path

if "polypod_meta_tree" not in sys.modules:
    spec = importlib.util.spec_from_file_location(
        "polypod_meta_tree", Path(__file__).with_name("tree.py")
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["polypod_meta_tree"] = module
    spec.loader.exec_module(module)
