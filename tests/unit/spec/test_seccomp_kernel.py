"""The kernel's own answer: a process under the default filter, without any privilege."""

import json
import os
import signal
import subprocess
import sys

import pytest

from polypod.spec.capabilities import ALL_CAPABILITIES, DEFAULT_CAPABILITIES
from polypod.spec.seccomp import compile_filter
from polypod.spec.seccomp_default import default_profile
from polypod.spec.seccomp_numbers import syscall_numbers

pytestmark = pytest.mark.skipif(
    os.uname().machine not in ("x86_64", "aarch64"), reason="no filters for this machine"
)

# Loads the filter from its input, makes the calls of its first argument, tells their errnos.
CHILD = """
import ctypes, json, sys
libc = ctypes.CDLL(None, use_errno=True)
program = ctypes.create_string_buffer(sys.stdin.buffer.read())
size = len(program) - 1
class Head(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))
head = Head(size // 8, ctypes.addressof(program))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(head), 0, 0) == 0, ctypes.get_errno()
answers = []
for call in json.loads(sys.argv[1]):
    ctypes.set_errno(0)
    result = libc.syscall(*(ctypes.c_long(value) for value in call))
    answers.append(ctypes.get_errno() if result == -1 else 0)
print(json.dumps(answers))
"""


def run(capabilities, calls):
    program = compile_filter(default_profile(frozenset(capabilities)))
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", CHILD, json.dumps(calls)],
        input=program,
        capture_output=True,
        timeout=60,
        check=False,
    )


def answers(capabilities, *calls):
    numbers = syscall_numbers(os.uname().machine)
    done = run(capabilities, [(numbers[name], *args) for name, *args in calls])
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


EPERM, EINVAL, ENOSYS = 1, 22, 38


def test_e24_default_filter_in_the_kernel():
    new_user, af_vsock, add_randomize = 0x10000000, 40, 0x0040000
    assert answers(
        DEFAULT_CAPABILITIES,
        ("getpid",),
        ("unshare", new_user),
        ("clone", new_user | 17, 0, 0, 0, 0),
        ("clone3", 0, 0),
        ("keyctl", 0, 0),
        ("bpf", 0, 0, 0),
        ("io_uring_setup", 1, 0),
        ("userfaultfd", 0),
        ("setns", -1, 0),
        ("mount", 0, 0, 0, 0, 0),
        ("socket", af_vsock, 1, 0),
        ("socket", af_vsock | 1 << 32, 1, 0),
        ("socket", 1, 1, 0),
        ("personality", add_randomize),
        ("personality", 0xFFFFFFFF),
        ("listns", 0, 0, 0, 0),
    ) == [0, EPERM, EPERM, ENOSYS, *[EPERM] * 8, 0, EPERM, 0, ENOSYS]


def test_e24_capabilities_open_calls_in_the_kernel():
    """What answers now is the kernel, which finds the arguments wrong."""
    found = answers(ALL_CAPABILITIES, ("unshare", 1 << 63 - 1), ("clone3", 0, 0), ("setns", -1, 0))
    assert EPERM not in found
    assert ENOSYS not in found


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x32 is an ABI of x86_64")
def test_e24_another_abi_is_killed_by_the_kernel():
    getpid_of_x32 = 39 | 0x40000000
    assert run(DEFAULT_CAPABILITIES, [[getpid_of_x32]]).returncode == -signal.SIGSYS
