"""What a runtime says of itself, and what its handler may do then."""

from __future__ import annotations

import json

import pytest

from polypod.plugin import Feature
from polypod_oci.features import OLDEST_VERSION, WIDEST, Facts, read_features

DOCUMENT = {
    "ociVersionMin": "1.0.0",
    "ociVersionMax": "1.3.0",
    "mountOptions": ["bind", "rro", "rshared"],
    "linux": {"namespaces": ["pid", "network"], "seccomp": {"enabled": True}},
}


def read(**changes: object) -> Facts:
    return read_features(json.dumps({**DOCUMENT, **changes}).encode())


def test_one_that_can_everything():
    assert read() == Facts("1.0.0", WIDEST)


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"mountOptions": ["bind", "rshared"]}, {Feature.RECURSIVE_READ_ONLY}),
        ({"mountOptions": ["rro"]}, {Feature.BIDIRECTIONAL_MOUNTS}),
        ({"linux": {"namespaces": ["pid"], "seccomp": {"enabled": False}}}, {Feature.SECCOMP}),
        (
            {"linux": {"namespaces": [], "seccomp": {"enabled": True}}},
            {Feature.SHARED_PID, Feature.TARGET_PID},
        ),
    ],
    ids=["no-rro", "no-rshared", "no-seccomp", "no-pid"],
)
def test_what_is_not_said_is_not_there(changes, missing):
    assert WIDEST - read(**changes).features == missing


def test_the_lowest_version_is_taken():
    assert read(ociVersionMin="1.1.0").version == "1.1.0"
    assert read(ociVersionMin=7).version == OLDEST_VERSION


@pytest.mark.parametrize("text", [b"", b"unknown command features\n", b"[]", b'{"linux": 3}'])
def test_what_is_no_such_document_is_refused(text):
    with pytest.raises(ValueError):
        read_features(text)


def test_without_the_command_version_1_0_holds():
    facts = Facts()
    assert facts.version == "1.0.0"
    assert WIDEST - facts.features == {Feature.RECURSIVE_READ_ONLY}
