"""A4: tokens are long, work once, for a minute, and there are not too many of them."""

import base64

import pytest

from polypod.streaming.tokens import LIFETIME_S, LIMIT, Tokens, TooMany


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def tokens(clock):
    return Tokens(clock)


def test_a4_a_token_works_once(tokens):
    token = tokens.issue("this")
    assert tokens.redeem(token) == "this"
    assert tokens.redeem(token) is None


def test_a4_tokens_are_at_least_128_bits_and_differ(tokens):
    issued = {tokens.issue(None) for _ in range(500)}
    assert len(issued) == 500
    assert all(len(base64.urlsafe_b64decode(token)) * 8 >= 128 for token in issued)


@pytest.mark.parametrize("token", ["", "x", "a" * 32, "\udce4", "../exec"])
def test_a4_a_guess_is_nothing(tokens, token):
    tokens.issue("this")
    assert tokens.redeem(token) is None


def test_a4_a_token_expires(tokens, clock):
    early, late = tokens.issue("early"), None
    clock.now += LIFETIME_S - 1
    late = tokens.issue("late")
    assert len(tokens) == 2
    clock.now += 1
    assert tokens.redeem(early) is None
    assert tokens.redeem(late) == "late"
    assert len(tokens) == 0


def test_a4_the_oldest_gives_way_and_is_told_so(tokens):
    issued = [tokens.issue(number) for number in range(LIMIT + 1)]
    assert len(tokens) == LIMIT
    with pytest.raises(TooMany):
        tokens.redeem(issued[0])
    assert tokens.redeem(issued[0]) is None
    assert tokens.redeem(issued[1]) == 1
    assert tokens.redeem(issued[-1]) == LIMIT


def test_a4_however_many_are_displaced_the_table_is_bounded(tokens):
    first = tokens.issue("first")
    for number in range(2 * LIMIT):
        tokens.issue(number)
    assert len(tokens) == LIMIT
    assert tokens.redeem(first) is None
