"""The builder of tars, for the tests of this folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location(
    "polypod_test_tars", Path(__file__).with_name("tars.py")
)
_TARS = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_TARS)


@pytest.fixture
def tars():
    """`tests/unit/image/tars.py`."""
    return _TARS
