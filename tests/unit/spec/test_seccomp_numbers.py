"""The tables of system call numbers, against what this host knows."""

import re
from pathlib import Path

import pytest
from polypod_test_seccomp_oracle import known_numbers

from polypod.plugin.errors import Unsupported
from polypod.spec.seccomp_numbers import syscall_numbers

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
# Numbers of 32-bit machines in the common header.
THIRTY_TWO_BIT = range(403, 424)
# The count, the base of what machines add, and a name that is sync_file_range's on other machines.
NO_CALLS = ("syscalls", "arch_specific_syscall", "sync_file_range2")


@pytest.mark.parametrize("machine", HEADERS)
def test_numbers_equal_the_installed_headers(machine):
    header = HEADERS[machine]
    if not header.exists():
        pytest.skip(f"{header} is not installed")
    defined = dict(re.findall(r"#define\s+(__NR\w+)\s+(\w+)", header.read_text()))
    ours = syscall_numbers(machine)
    for name, value in defined.items():
        number = int(defined.get(value, value)) if defined.get(value, value).isdigit() else -1
        short = name.removeprefix("__NR_")
        if short in NO_CALLS or name.startswith("__NR3264") or number in THIRTY_TWO_BIT:
            continue
        if value.startswith("__NR3264") and short not in ours:
            continue  # the 32-bit name of a call that has two
        assert ours.get(short) == number, name


@pytest.mark.needs_libseccomp
@pytest.mark.parametrize("machine", HEADERS)
def test_numbers_equal_libseccomp(machine):
    ours = syscall_numbers(machine)
    known = known_numbers(ours, machine)
    assert len(known) > 300
    assert {name: ours[name] for name in known} == known


@pytest.mark.parametrize("machine", HEADERS)
def test_no_number_and_no_name_twice(machine):
    ours = syscall_numbers(machine)
    assert len(set(ours.values())) == len(ours)
    assert ours["listns"] == 470
    assert ours["mseal"] == 462


def test_unknown_machine_is_unsupported():
    with pytest.raises(Unsupported, match="aarch64, x86_64"):
        syscall_numbers("s390x")
