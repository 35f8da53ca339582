"""A runtime's last words, as a user reads them."""

from __future__ import annotations

import json

import pytest

from polypod_oci.errors import said


def line(level: str, text: str) -> bytes:
    return (
        json.dumps({"level": level, "msg": text, "time": "2026-01-01T00:00:00Z"}).encode() + b"\n"
    )


@pytest.mark.parametrize(
    ("log", "output", "wanted"),
    [
        (line("error", "no such file"), b"ignored", "no such file"),
        (line("warning", "first") + line("error", "second"), b"", "first; second"),
        (line("debug", "noise") + line("info", "noise") + line("error", "it"), b"", "it"),
        (line("error", "twice") * 2, b"", "twice"),
        (b"not JSON\n" + line("error", "x"), b"", "not JSON; x"),
        (b'"text"\n', b"usage: runc\n\n  see --help \n", "usage: runc; see --help"),
        (b"", b"", "it said nothing"),
        (b"\xff\xfe\n", b"", "��"),
        (b"".join(line("error", str(number)) for number in range(9)), b"", "6; 7; 8"),
    ],
)
def test_what_matters_of_it_is_said(log, output, wanted):
    assert said(log, output) == wanted


def test_a_flood_is_cut():
    assert len(said(line("error", "x" * 100_000))) == 2000
