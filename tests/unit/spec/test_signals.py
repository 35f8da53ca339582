"""Stop signals by name and number."""

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.plugin.errors import InvalidArgument
from polypod.spec.signals import parse_signal, stop_signal


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("SIGTERM", 15),
        ("term", 15),
        ("Kill", 9),
        ("15", 15),
        (" 9 ", 9),
        ("00015", 15),
        ("64", 64),
        ("SIGRTMIN", 34),
        ("RTMIN+3", 37),
        ("sigrtmin+30", 64),
        ("SIGRTMAX", 64),
        ("RTMAX-1", 63),
        ("SIGRTMAX-30", 34),
        ("SIGCLD", 17),
        ("POLL", 29),
        ("IOT", 6),
    ],
)
def test_names_and_numbers(text, number):
    assert parse_signal(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "65",
        "-1",
        "+9",
        "9999",
        "100",
        "0" * 5000,
        "9" * 5000,
        "SIG",
        "SIGFOO",
        "SIGSIGTERM",
        "DFL",
        "RTMIN+31",
        "RTMIN-1",
        "RTMAX+1",
        "RTMAX-31",
        "RTMIN+²",
        "RTMIN+",
        "RTMIN+-1",
        "RTMIN+003",
        "²",
        "٩",
        "TERM\n9",
    ],
)
def test_what_is_no_signal_is_refused(text):
    with pytest.raises(InvalidArgument, match="not a signal of Linux"):
        parse_signal(text)


def test_every_name_of_this_host_is_known():
    for member in signal.Signals:
        assert parse_signal(member.name) == member.value or member.name.startswith("SIGRT")


@pytest.mark.parametrize(
    ("configured", "image", "wanted"),
    [(0, "", 15), (0, "SIGQUIT", 3), (10, "SIGQUIT", 10), (64, "", 64)],
)
def test_request_wins_over_the_image(configured, image, wanted):
    assert stop_signal(configured, image) == wanted


def test_the_one_that_applies_must_be_a_signal():
    for configured, image in ((65, ""), (-1, ""), (0, "NONE")):
        with pytest.raises(InvalidArgument):
            stop_signal(configured, image)
    assert stop_signal(9, "NONE") == 9


@given(st.text(max_size=12))
def test_any_text_is_a_signal_or_refused(text):
    try:
        assert 1 <= parse_signal(text) <= 64
    except InvalidArgument:
        return
