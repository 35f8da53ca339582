"""`polypod config default` shows every key that the first plugins read, with the default that holds."""

import re
import tomllib
from pathlib import Path

import pytest

from polypod import config
from polypod.plugin.errors import InvalidArgument
from polypod_image import options as images
from polypod_network import options as bridge
from polypod_network.cni import options as cni

KEY = re.compile(r"^# ((?:[a-z_]+\.)?[a-z_]+ = )", re.MULTILINE)
SHOWN = tomllib.loads(KEY.sub(r"\1", config.default_text()))


def known(parse, table):
    """The keys that a plugin names when it is asked for one that nobody has."""
    with pytest.raises(InvalidArgument) as refused:
        parse({**table, "nobodys-key": 1})
    return set(re.findall(r"'([a-z_]+)'", str(refused.value).split("unknown key", 1)[1]))


def test_images():
    assert set(SHOWN["images"]) == known(images.parse, {})
    assert images.parse(SHOWN["images"]) == images.parse({})


def test_bridge():
    root = Path("/r")
    own = {key: value for key, value in SHOWN["network"].items() if key not in {"type", "cni"}}
    assert set(own) == known(lambda table: bridge.parse(table, root), {})
    assert bridge.parse(SHOWN["network"], root) == bridge.parse({}, root)


def test_cni():
    assert set(SHOWN["network"]["cni"]) == known(lambda table: cni.parse({"cni": table}), {})
    assert cni.parse(SHOWN["network"]) == cni.parse({})
