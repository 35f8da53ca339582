"""Device rules as v1 lines and as a v2 program, both against a plain reading of the rules."""

import ctypes
import errno
import itertools
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polypod_test_ebpf_machine import run_device_program

from polypod.plugin.errors import InvalidArgument, Unsupported
from polypod.plugin.oci import DeviceRule
from polypod.spec.cgroup_devices import device_program, v1_device_files
from polypod.spec.devices import HostDevice, device_rules

BITS = {"m": 1, "r": 2, "w": 4}
KINDS = {"b": 1, "c": 2}
PROBES = [
    (kind, major, minor, access)
    for kind in "bc"
    for major in (1, 5, 8, 136)
    for minor in (0, 3, 5)
    for access in range(1, 8)
]


def allowed_by_rules(rules, kind, major, minor, access):
    """For each kind of access the last rule that fits decides."""

    def one(letter):
        for rule in reversed(rules):
            fits = (
                rule.type in ("a", kind)
                and rule.major in (None, major)
                and rule.minor in (None, minor)
                and letter in rule.access
            )
            if fits:
                return rule.allow
        return False

    return all(one(letter) for letter, bit in BITS.items() if access & bit)


def allowed_by_v1(files, kind, major, minor, access):
    """The kernel's device controller (security/device_cgroup.c) after these writes."""
    allow, exceptions = True, []
    for name, text in files:
        if text == "a":
            allow, exceptions = name == "devices.allow", []
            continue
        letter, numbers, letters = text.split()
        assert (name == "devices.allow") is not allow, "an exception from what holds anyway"
        exceptions.append((letter, numbers.split(":"), sum(BITS[item] for item in letters)))
    for letter, numbers, bits in exceptions:
        fits = (
            letter == kind and numbers[0] in ("*", str(major)) and numbers[1] in ("*", str(minor))
        )
        if fits and allow and access & bits:
            return False
        if fits and not allow and not access & ~bits:
            return True
    return allow


def allowed_by_program(program, kind, major, minor, access):
    return bool(run_device_program(program, KINDS[kind], major, minor, access))


RULES = st.builds(
    DeviceRule,
    allow=st.booleans(),
    type=st.sampled_from(["a", "b", "c"]),
    major=st.sampled_from([None, None, 1, 5, 8]),
    minor=st.sampled_from([None, None, 0, 3]),
    access=st.sampled_from(["rwm", "rwm", "r", "rw", "w", "m", "wm"]),
)


@settings(max_examples=120, deadline=None)
@given(st.lists(RULES, min_size=1, max_size=5).map(tuple))
def test_program_decides_as_the_rules_say(rules):
    program = device_program(rules)
    for probe in PROBES:
        assert allowed_by_program(program, *probe) == allowed_by_rules(rules, *probe), probe


@settings(max_examples=200, deadline=None)
@given(st.lists(RULES, min_size=1, max_size=5).map(tuple))
def test_v1_lines_decide_as_the_rules_say_or_are_refused(rules):
    try:
        files = v1_device_files(rules)
    except Unsupported:
        return
    assert files[0] == ("devices.deny", "a")
    for probe in PROBES:
        ours, wanted = allowed_by_v1(files, *probe), allowed_by_rules(rules, *probe)
        if probe[3] in (1, 2, 4):
            assert ours == wanted, probe
        else:
            # Two lines that grant a part each are no grant of both together: v1 may refuse more.
            assert wanted or not ours, probe


def test_v1_default_rules_of_a_container():
    files = v1_device_files(
        device_rules((HostDevice("/dev/fuse", "c", 10, 229),), privileged=False)
    )
    assert files[:3] == [
        ("devices.deny", "a"),
        ("devices.allow", "c *:* m"),
        ("devices.allow", "b *:* m"),
    ]
    assert ("devices.allow", "c 1:3 rwm") in files
    assert ("devices.allow", "c 136:* rwm") in files
    assert files[-1] == ("devices.allow", "c 10:229 rwm")


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_default_rules_of_a_container(version):
    rules = device_rules((HostDevice("/dev/sda", "b", 8, 0, access="r"),), privileged=False)
    files, program = v1_device_files(rules), device_program(rules)

    def allowed(*probe):
        if version == "v1":
            return allowed_by_v1(files, *probe)
        return allowed_by_program(program, *probe)

    read, read_write, make = 2, 6, 1
    assert allowed("c", 1, 3, read_write)
    assert allowed("c", 136, 5, read_write)
    assert allowed("b", 8, 0, read)
    assert allowed("b", 8, 16, make)
    assert not allowed("b", 8, 0, read_write)
    assert not allowed("b", 8, 16, read)
    assert not allowed("c", 1, 1, read)


def test_privileged_container_may_use_every_device():
    rules = device_rules((), privileged=True)
    assert v1_device_files(rules) == [("devices.deny", "a"), ("devices.allow", "a")]
    program = device_program(rules)
    assert all(allowed_by_program(program, *probe) for probe in PROBES)


def test_no_rules_write_nothing_on_v1_and_refuse_on_v2():
    assert v1_device_files(()) == []
    program = device_program(())
    assert not any(allowed_by_program(program, *probe) for probe in PROBES)


def test_e23_exception_from_an_exception_is_refused_on_v1():
    rules = (
        DeviceRule(False),
        DeviceRule(True, "c", 136),
        DeviceRule(False, "c", 136, 5),
    )
    with pytest.raises(Unsupported, match=r"c 136:5 rwm.*c 136:\* rwm"):
        v1_device_files(rules)
    assert not allowed_by_program(device_program(rules), "c", 136, 5, 2)
    assert allowed_by_program(device_program(rules), "c", 136, 3, 2)


def test_minus_one_is_any_number():
    rules = (DeviceRule(False), DeviceRule(True, "c", 5, -1, "rw"))
    assert v1_device_files(rules)[-1] == ("devices.allow", "c 5:* rw")


@pytest.mark.parametrize(
    "rule",
    [
        DeviceRule(True, "p", 1, 1),
        DeviceRule(True, "c", 1, 1, ""),
        DeviceRule(True, "c", 1, 1, "rx"),
        DeviceRule(True, "c", -2, 1),
        DeviceRule(True, "c", 1, 2**31),
    ],
    ids=["type", "no access", "access", "negative", "large"],
)
def test_malformed_rule_is_refused(rule):
    for compiled in (device_program, v1_device_files):
        with pytest.raises(InvalidArgument, match="device rule"):
            compiled((rule,))


class _Load(ctypes.Structure):
    """The head of union bpf_attr for BPF_PROG_LOAD."""

    _fields_ = (
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
        ("rest", ctypes.c_uint8 * 72),
    )


def _load(program):
    """Return a descriptor of the loaded program; OSError with the verifier's words."""
    bpf = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
    code = ctypes.create_string_buffer(program, len(program))
    words = ctypes.create_string_buffer(65536)
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    attributes = _Load(15, len(program) // 8)
    attributes.insns, attributes.license = ctypes.addressof(code), ctypes.addressof(licence)
    attributes.log_level, attributes.log_size = 1, len(words)
    attributes.log_buf = ctypes.addressof(words)
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(bpf, 5, ctypes.byref(attributes), ctypes.sizeof(attributes))
    if result < 0:
        raise OSError(ctypes.get_errno(), words.value.decode()[-600:])
    return result


@pytest.mark.needs_root
def test_kernel_takes_the_programs():
    partial = [
        DeviceRule(allow, kind, major, None, access)
        for allow, kind, major, access in itertools.product(
            (True, False), "abc", (None, 1), ("r", "wm")
        )
    ]
    try:
        os.close(_load(device_program(())))
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM, errno.EINVAL):
            pytest.skip(f"this kernel loads no device programs: {error}")
        raise
    for rules in (
        device_rules((), privileged=True),
        device_rules((HostDevice("/dev/fuse", "c", 10, 229),), privileged=False),
        tuple(partial),
        (DeviceRule(False), *partial),
    ):
        os.close(_load(device_program(rules)))
