"""Localhost profiles: the plain form, docker's form, and what is refused where."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.plugin.errors import InvalidArgument, Unsupported
from polypod.plugin.oci import Seccomp, SeccompArg, SeccompRule
from polypod.spec.seccomp import compile_filter
from polypod.spec.seccomp_default import parse_profile


def parsed(document, **circumstances):
    circumstances = {"machine": "x86_64", "kernel": "6.1.0-18-amd64", **circumstances}
    return parse_profile(json.dumps(document).encode(), **circumstances)


def named(profile):
    return [name for rule in profile.syscalls for name in rule.names]


def test_plain_form():
    document = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "listenerPath": "",
        "syscalls": [
            {
                "names": ["read", "write"],
                "action": "SCMP_ACT_ALLOW",
                "args": [
                    {"index": 1, "value": 2**64 - 1, "valueTwo": 7, "op": "SCMP_CMP_MASKED_EQ"}
                ],
            },
            {"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": None},
        ],
    }
    arg = SeccompArg(1, 2**64 - 1, "SCMP_CMP_MASKED_EQ", 7)
    assert parsed(document) == Seccomp(
        "SCMP_ACT_ERRNO",
        38,
        ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86"),
        ("SECCOMP_FILTER_FLAG_LOG",),
        (
            SeccompRule(("read", "write"), "SCMP_ACT_ALLOW", None, (arg,)),
            SeccompRule(("chmod",), "SCMP_ACT_ERRNO", 1),
        ),
    )


def conditional(**rule):
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": ["bpf"], "action": "SCMP_ACT_ALLOW", **rule}],
    }


@pytest.mark.parametrize(
    ("rule", "circumstances", "kept"),
    [
        ({"includes": {"caps": ["CAP_BPF"]}}, {}, False),
        ({"includes": {"caps": ["CAP_BPF"]}}, {"capabilities": frozenset({"CAP_BPF"})}, True),
        (
            {"includes": {"caps": ["CAP_BPF", "CAP_SYS_ADMIN"]}},
            {"capabilities": frozenset({"CAP_BPF"})},
            False,
        ),
        (
            {"excludes": {"caps": ["CAP_BPF", "CAP_SYS_ADMIN"]}},
            {"capabilities": frozenset({"CAP_BPF"})},
            False,
        ),
        ({"excludes": {"caps": ["CAP_BPF"]}}, {}, True),
        ({"includes": {"arches": ["amd64", "x32"]}}, {}, True),
        ({"includes": {"arches": ["arm64"]}}, {}, False),
        ({"includes": {"arches": ["arm64"]}}, {"machine": "aarch64"}, True),
        ({"excludes": {"arches": ["amd64"]}}, {}, False),
        ({"includes": {"minKernel": "4.8"}}, {}, True),
        ({"includes": {"minKernel": "6.2"}}, {}, False),
        ({"excludes": {"minKernel": "4.8"}}, {}, False),
        ({"includes": {}, "excludes": {}}, {}, True),
        ({"includes": None, "excludes": None}, {}, True),
    ],
)
def test_conditions_of_the_docker_form(rule, circumstances, kept):
    assert named(parsed(conditional(**rule), **circumstances)) == (["bpf"] if kept else [])


def test_arch_map_gives_the_machines_entry():
    document = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "archMap": [
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": None},
        ],
    }
    assert parsed(document).architectures == ("SCMP_ARCH_X86_64",)
    assert parsed(document, machine="aarch64").architectures == (
        "SCMP_ARCH_AARCH64",
        "SCMP_ARCH_ARM",
    )


def test_old_single_name_and_errno_by_name():
    profile = parsed(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrno": "ENOSYS",
            "syscalls": [{"name": "read", "action": "SCMP_ACT_ERRNO", "errno": "EACCES"}],
        }
    )
    assert profile.default_errno_ret == 38
    assert profile.syscalls == (SeccompRule(("read",), "SCMP_ACT_ERRNO", 13),)


RULE = {"names": ["read"], "action": "SCMP_ACT_ALLOW"}
BAD = [
    ([], "the document: must be an object, not a list"),
    ({}, "defaultAction: is missing"),
    ({"defaultAction": 1}, "defaultAction: must be a string, not a whole number"),
    ({"defaultAction": "ALLOW"}, "defaultAction: action 'ALLOW' is unknown"),
    ({"syscals": []}, "syscals: is unknown"),
    ({"defaultErrnoRet": -1}, "defaultErrnoRet: -1 is not from 0"),
    ({"defaultErrnoRet": 1.5}, "defaultErrnoRet: must be a whole number"),
    ({"defaultErrnoRet": True}, "defaultErrnoRet: must be a whole number, not true or false"),
    ({"defaultErrno": "EPERM2"}, "defaultErrno: 'EPERM2' is no name of an errno"),
    ({"defaultErrno": "errorcode"}, "defaultErrno: 'errorcode' is no name of an errno"),
    ({"architectures": ["X86"]}, r"architectures\[0\]: 'X86'"),
    ({"architectures": [], "archMap": []}, "exclude each other"),
    ({"archMap": [{}]}, r"archMap\[0\].architecture: is missing"),
    ({"syscalls": {}}, "syscalls: must be a list, not an object"),
    ({"syscalls": [RULE, 3]}, r"syscalls\[1\]: must be an object, not a whole number"),
    ({"syscalls": [{"names": ["read"]}]}, r"syscalls\[0\].action: is missing"),
    (
        {"syscalls": [{"names": [], "action": "SCMP_ACT_LOG"}]},
        r"syscalls\[0\].names: must not be empty",
    ),
    ({"syscalls": [{"names": ["a b"], "action": "SCMP_ACT_LOG"}]}, r"names\[0\]: 'a b'"),
    ({"syscalls": [{**RULE, "name": "x"}]}, "name and names exclude each other"),
    ({"syscalls": [{**RULE, "extra": 1}]}, r"syscalls\[0\].extra: is unknown"),
    ({"syscalls": [{**RULE, "args": [{"index": 6, "op": "SCMP_CMP_EQ"}]}]}, r"args\[0\].index: 6"),
    ({"syscalls": [{**RULE, "args": [{"index": 0, "op": "="}]}]}, r"args\[0\].op: operator '='"),
    (
        {"syscalls": [{**RULE, "args": [{"index": 0, "op": "SCMP_CMP_EQ", "value": 2**64}]}]},
        r"args\[0\].value: 18446744073709551616",
    ),
    ({"syscalls": [{**RULE, "includes": {"os": []}}]}, r"includes.os: is unknown"),
    ({"syscalls": [{**RULE, "includes": {"minKernel": "new"}}]}, "minKernel: 'new'"),
    ({"syscalls": [RULE] * 2049}, "syscalls: has 2049 items, at most 2048"),
    ({"syscalls": [{**RULE, "names": ["read"] * 1025}]}, "at most 1024"),
]


@pytest.mark.parametrize(("change", "words"), BAD, ids=[words[:40] for _, words in BAD])
def test_e23_malformed_profile_is_refused_naming_the_place(change, words):
    document = change
    if isinstance(change, dict) and change and "defaultAction" not in change:
        document = {"defaultAction": "SCMP_ACT_ERRNO", **change}
    with pytest.raises(InvalidArgument, match=words):
        parsed(document)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"defaultAction": NaN}',
        b'{"defaultErrnoRet": ' + b"9" * 10_000 + b"}",
        b'{"defaultAction": "SCMP_ACT_ALLOW", "defaultAction": "SCMP_ACT_KILL"}',
        b" " * (1024 * 1024 + 1),
    ],
    ids=["empty", "half", "encoding", "deep", "nan", "long number", "twice", "long"],
)
def test_e8_what_is_no_profile_is_refused(text):
    with pytest.raises(InvalidArgument, match="seccomp profile"):
        parse_profile(text)


@pytest.mark.parametrize("field", ["listenerPath", "listenerMetadata"])
def test_e23_listener_is_unsupported(field):
    with pytest.raises(Unsupported, match=field):
        parsed({"defaultAction": "SCMP_ACT_ALLOW", field: "/run/x"})


def test_e23_notify_is_unsupported_when_it_is_compiled():
    profile = parsed(
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{**RULE, "action": "SCMP_ACT_NOTIFY"}]}
    )
    with pytest.raises(Unsupported, match="NOTIFY"):
        compile_filter(profile, "x86_64")


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(text):
    with pytest.raises(InvalidArgument):
        parse_profile(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["names", "action", "args", "index", "op", "includes", "caps", "value"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(json_values, json_values)
def test_any_document_is_read_or_refused(rules, arches):
    document = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules, "architectures": arches}
    try:
        profile = parsed(document)
    except (InvalidArgument, Unsupported):
        return
    assert profile.default_action == "SCMP_ACT_ERRNO"
