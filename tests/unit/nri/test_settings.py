"""``[plugins.nri]``."""

from __future__ import annotations

import pytest

from polypod.plugin import InvalidArgument
from polypod_nri.settings import Settings, parse


def test_nothing_said_is_switched_off():
    assert parse({}) == Settings()
    assert not Settings().enabled


def test_every_key_is_taken():
    options = {
        "enabled": True,
        "socket": "/run/x.sock",
        "plugin_dir": "/p",
        "config_dir": "/c",
        "registration_timeout_s": 1,
        "request_timeout_s": 0.5,
        "required": ["one", "10-two"],
    }
    settings = parse(options)
    assert {**options, "required": ("one", "10-two")} == {
        name: getattr(settings, name) for name in options
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"enabeld": True}, "did you mean 'enabled'"),
        ({"zzz": 1}, "known are"),
        ({"enabled": 1}, "enabled: 1 is not a bool"),
        ({"socket": 7}, "socket: 7 is not a str"),
        ({"required": "one"}, "required: 'one' is not a list of strings"),
        ({"required": [1]}, "not a list of strings"),
        ({"request_timeout_s": True}, "not a float"),
        ({"request_timeout_s": 0}, "is no time limit"),
        ({"registration_timeout_s": -1.0}, "is no time limit"),
    ],
)
def test_what_is_wrong_is_named(options, words):
    with pytest.raises(InvalidArgument, match=words):
        parse(options)
