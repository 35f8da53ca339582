"""E24: the seccomp filter is the last thing before the program, and the default one refuses what it should."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from support.containment_parts import python, python_mounts, security

from polypod.plugin.oci import Seccomp, SeccompRule
from polypod.plugin.requests import (
    Capabilities,
    ProfileType,
    SecurityProfile,
)

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay, pytest.mark.needs_busybox]

_SLEEP = "echo ready; exec sleep 100"


_CALLS = """
import ctypes, errno, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
for name, number, *args in {calls}:
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(arg) for arg in args])
    print(name, errno.errorcode.get(ctypes.get_errno(), 0) if result < 0 else "done")
"""
# x86-64 numbers (asm/unistd_64.h); (name, number, arguments that would do no harm).
_REFUSED = [
    ("unshare user", 272, 0x10000000),
    ("unshare mount", 272, 0x20000),
    ("setns", 308, 0, 0),
    ("mount", 165, 0, 0, 0, 0, 0),
    ("umount2", 166, 0, 0),
    ("pivot_root", 155, 0, 0),
    ("open_tree", 428, 0, 0, 0),
    ("move_mount", 429, 0, 0, 0, 0, 0),
    ("fsopen", 430, 0, 0),
    ("mount_setattr", 442, 0, 0, 0, 0, 0),
    ("keyctl", 250, 0, 0, 0),
    ("add_key", 248, 0, 0, 0, 0, 0),
    ("request_key", 249, 0, 0, 0, 0),
    ("bpf", 321, 0, 0, 0),
    ("perf_event_open", 298, 0, 0, 0, 0, 0),
    ("io_uring_setup", 425, 0, 0),
    ("io_uring_enter", 426, -1, 0, 0, 0),
    ("io_uring_register", 427, -1, 0, 0, 0),
    ("userfaultfd", 323, 0),
    ("kexec_load", 246, 0, 0, 0, 0),
    ("init_module", 175, 0, 0, 0),
    ("finit_module", 313, -1, 0, 0),
    ("open_by_handle_at", 304, -1, 0, 0),
    ("swapon", 167, 0, 0),
    ("reboot", 169, 0, 0, 0),
    ("syslog", 103, 10, 0, 0),
    ("settimeofday", 164, 0, 0),
    ("acct", 163, 0),
    ("quotactl", 179, 0, 0, 0, 0),
    ("iopl", 172, 0),
    ("lookup_dcookie", 212, 0, 0, 0),
    ("nfsservctl", 180, 0, 0, 0),
    ("personality of old programs", 135, 0x0400000),
]
_ALLOWED = [("getpid", 39), ("sched_yield", 24), ("personality asked", 135, 0xFFFFFFFF)]


def needs_x86():
    return pytest.mark.skipif(os.uname().machine != "x86_64", reason="call numbers of x86-64")


@needs_x86()
@pytest.mark.parametrize("as_exec", [False, True], ids=["first process", "exec"])
async def test_e24_default_profile_refuses(pod, as_exec):
    command = python(_CALLS.format(calls=_REFUSED + _ALLOWED))
    if as_exec:
        box = await pod.start(_SLEEP, mounts=python_mounts())
        await box.says("ready")
        result = await box.exec(command)
    else:
        result = await pod.run(command, mounts=python_mounts())
    answers = dict(line.rsplit(" ", 1) for line in result.lines)
    refused = {name for name, *_ in _REFUSED}
    assert {name: answers[name] for name in refused} == dict.fromkeys(refused, "EPERM")
    assert {answers[name] for name, *_ in _ALLOWED} == {"done"}


@needs_x86()
async def test_e24_new_namespaces_cannot_be_cloned(pod):
    calls = [("clone", 56, 0x10000000 | 17, 0, 0, 0, 0), ("clone3", 435, 0, 0)]
    result = await pod.run(python(_CALLS.format(calls=calls)), mounts=python_mounts())
    # ENOSYS makes C libraries take the older call, whose flags can be looked at.
    assert result.lines == ["clone EPERM", "clone3 ENOSYS"]


@needs_x86()
async def test_e24_capability_opens_what_belongs_to_it(pod):
    """With SYS_ADMIN the calls reach the kernel, which then judges the arguments."""
    asked = security(capabilities=Capabilities(add=("SYS_ADMIN",)))
    calls = [("mount", 165, 0, 0, 0, 0, 0), ("unshare", 272, 0x4000000), ("keyctl", 250, 0, 0, 0)]
    result = await pod.run(
        python(_CALLS.format(calls=calls)), mounts=python_mounts(), security=asked
    )
    assert result.lines == ["mount EFAULT", "unshare done", "keyctl EPERM"]


@needs_x86()
async def test_e24_calls_of_other_abis_are_no_way_around(pod):
    """The x32 form of a refused call."""
    calls = [("x32 unshare", 272 | 0x40000000, 0x10000000), ("x32 mount", 165 | 0x40000000)]
    result = await pod.run(python(_CALLS.format(calls=calls)), mounts=python_mounts())
    assert "done" not in result.out
    assert result.code != 0 or set(result.out.split()) <= {
        "x32",
        "unshare",
        "mount",
        "EPERM",
        "ENOSYS",
    }


@pytest.mark.parametrize("user", [0, 1000])
@pytest.mark.parametrize("no_new_privs", [False, True])
async def test_e24_filter_is_there_and_nothing_after_it_failed(pod, user, no_new_privs):
    asked = security(run_as_user=user, no_new_privs=no_new_privs)
    look = ("/bin/grep", "-E", "^Seccomp:|^NoNewPrivs", "/proc/self/status")
    box = await pod.start(_SLEEP, security=asked)
    await box.says("ready")
    for result in (await pod.run(look, security=asked), await box.exec(look)):
        facts = dict(line.split(":\t") for line in result.lines)
        assert facts == {"NoNewPrivs": str(int(no_new_privs)), "Seccomp": "2"}


async def test_e24_unconfined_and_privileged_have_no_filter(pod):
    look = ("/bin/grep", "^Seccomp:", "/proc/self/status")
    for asked in (
        security(seccomp=SecurityProfile(ProfileType.UNCONFINED)),
        security(privileged=True),
    ):
        assert (await pod.run(look, security=asked)).out.split() == ["Seccomp:", "0"]


def _only(rules):
    seccomp = Seccomp("SCMP_ACT_KILL_PROCESS", syscalls=rules)
    return lambda config: replace(config, linux=replace(config.linux, seccomp=seccomp))


async def test_e24_filter_that_allows_only_execve_still_starts_the_program(pod):
    """Last of all: a filter under which none of our own steps could be done."""
    rules = (SeccompRule(("execve",), "SCMP_ACT_ALLOW"),)
    adjust = _only(rules)
    result = await pod.run(("/bin/true",), adjust=adjust)
    # The program itself dies of SIGSYS at its first call.
    assert (result.error, result.code) == ("", 159)
    box = await pod.start(_SLEEP)
    await box.says("ready")


async def test_keyring_is_not_the_launchers(pod):
    asked = security(seccomp=SecurityProfile(ProfileType.UNCONFINED), masked_paths=())
    code = """
import ctypes
libc = ctypes.CDLL(None)
libc.syscall.restype = ctypes.c_long
print(libc.syscall(250, 0, ctypes.c_int(-3), 0))  # KEYCTL_GET_KEYRING_ID of the session keyring
"""
    results = [
        await pod.run(python(code), mounts=python_mounts(), security=asked) for _ in range(2)
    ]
    serials = {int(result.out) for result in results}
    assert len(serials) == 2
