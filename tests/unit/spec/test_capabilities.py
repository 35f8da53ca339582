"""Capability sets: the default ones, what a request changes, what may be inherited."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.plugin.requests import Capabilities
from polypod.spec.capabilities import (
    ALL_CAPABILITIES,
    DEFAULT_CAPABILITIES,
    capability_sets,
    normalise,
)

NAMES = st.sampled_from([*ALL_CAPABILITIES, "ALL", "net_raw", "Cap_Chown", "NO_SUCH"])
REQUESTS = st.builds(
    Capabilities,
    add=st.lists(NAMES, max_size=4).map(tuple),
    drop=st.lists(NAMES, max_size=4).map(tuple),
    add_ambient=st.lists(NAMES, max_size=2).map(tuple),
)


def bounding(*, add=(), drop=(), privileged=False):
    sets = capability_sets(Capabilities(tuple(add), tuple(drop)), privileged=privileged)
    return set(sets.bounding)


def test_names_are_those_of_the_header_in_its_order():
    assert len(ALL_CAPABILITIES) == len(set(ALL_CAPABILITIES)) == 41
    places = {"CAP_CHOWN": 0, "CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_SETFCAP": 31}
    places |= {"CAP_PERFMON": 38, "CAP_BPF": 39, "CAP_CHECKPOINT_RESTORE": 40}
    assert {name: ALL_CAPABILITIES.index(name) for name in places} == places


def test_default_set():
    assert bounding() == DEFAULT_CAPABILITIES
    assert len(DEFAULT_CAPABILITIES) == 14


@pytest.mark.parametrize(
    ("add", "drop", "wanted"),
    [
        (["NET_ADMIN"], [], DEFAULT_CAPABILITIES | {"CAP_NET_ADMIN"}),
        (["cap_net_admin"], [], DEFAULT_CAPABILITIES | {"CAP_NET_ADMIN"}),
        ([], ["NET_RAW"], DEFAULT_CAPABILITIES - {"CAP_NET_RAW"}),
        (["ALL"], [], set(ALL_CAPABILITIES)),
        (["all"], ["CAP_SYS_ADMIN"], set(ALL_CAPABILITIES) - {"CAP_SYS_ADMIN"}),
        ([], ["ALL"], set()),
        (["NET_BIND_SERVICE"], ["ALL"], {"CAP_NET_BIND_SERVICE"}),
        (["ALL"], ["ALL"], set()),
        (["CHOWN"], ["CHOWN"], DEFAULT_CAPABILITIES - {"CAP_CHOWN"}),
    ],
)
def test_add_and_drop(add, drop, wanted):
    assert bounding(add=add, drop=drop) == wanted


def test_privileged_has_all_whatever_is_dropped():
    assert bounding(drop=["ALL"], privileged=True) == set(ALL_CAPABILITIES)


@given(REQUESTS, st.booleans())
def test_e7_inheritable_is_ambient_and_bounding_is_granted(request_, privileged):
    sets = capability_sets(request_, privileged=privileged)
    assert sets.bounding == sets.effective == sets.permitted
    assert sets.inheritable == sets.ambient
    assert set(sets.ambient) <= set(sets.permitted)
    if not request_.add_ambient:
        assert sets.inheritable == ()
    assert list(sets.bounding) == [name for name in ALL_CAPABILITIES if name in sets.bounding]


def test_e7_nothing_is_inherited_by_default_or_privilege():
    for privileged in (False, True):
        sets = capability_sets(Capabilities(add=("SYS_ADMIN",)), privileged=privileged)
        assert sets.inheritable == sets.ambient == ()


def test_ambient_capabilities_are_granted_in_all_sets():
    sets = capability_sets(Capabilities(add_ambient=("net_admin",)), privileged=False)
    assert sets.ambient == sets.inheritable == ("CAP_NET_ADMIN",)
    assert "CAP_NET_ADMIN" in sets.permitted


def test_e23_what_the_host_cannot_grant_is_left_out_and_logged(caplog):
    grantable = frozenset(ALL_CAPABILITIES) - {"CAP_SYS_RESOURCE"}
    with caplog.at_level(logging.WARNING):
        sets = capability_sets(Capabilities(), privileged=True, grantable=grantable)
    assert set(sets.bounding) == grantable
    assert "CAP_SYS_RESOURCE cannot be granted" in caplog.text


def test_e23_unknown_names_are_left_out_and_logged(caplog):
    with caplog.at_level(logging.WARNING):
        sets = capability_sets(Capabilities(add=("TELEPORT",)), privileged=False)
    assert set(sets.bounding) == DEFAULT_CAPABILITIES
    assert "CAP_TELEPORT are unknown" in caplog.text


@pytest.mark.parametrize(
    ("given_name", "name"),
    [
        ("net_raw", "CAP_NET_RAW"),
        ("CAP_Net_Raw", "CAP_NET_RAW"),
        ("all", "ALL"),
        (" kill ", "CAP_KILL"),
    ],
)
def test_names_are_normalised(given_name, name):
    assert normalise(given_name) == name
