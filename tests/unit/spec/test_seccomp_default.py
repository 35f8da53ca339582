"""RuntimeDefault: what is closed, what a capability opens."""

import pytest
from polypod_test_bpf_machine import SeccompMachine

from polypod.spec.capabilities import ALL_CAPABILITIES, DEFAULT_CAPABILITIES
from polypod.spec.seccomp import compile_filter
from polypod.spec.seccomp_default import default_profile
from polypod.spec.seccomp_numbers import syscall_numbers

ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


class Calls:
    def __init__(self, capabilities, machine):
        self.numbers, self.arch = syscall_numbers(machine), MACHINES[machine]
        profile = default_profile(frozenset(capabilities), machine)
        self.machine = SeccompMachine(compile_filter(profile, machine))

    def __call__(self, name, *args):
        return self.machine.run(self.numbers[name], args, self.arch)


CLOSED_TO_ALL = """
    add_key io_uring_enter io_uring_register io_uring_setup kexec_file_load kexec_load keyctl migrate_pages
    move_pages nfsservctl open_tree_attr pivot_root request_key swapoff swapon userfaultfd
"""
CLOSED_WITHOUT = {
    "CAP_SYS_ADMIN": "bpf fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree setns "
    "umount2 unshare quotactl sethostname setdomainname fanotify_init perf_event_open syslog",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_SYS_MODULE": "init_module finit_module delete_module",
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_TIME": "clock_settime settimeofday",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "CAP_SYS_NICE": "mbind set_mempolicy get_mempolicy",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_BPF": "bpf",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYSLOG": "syslog",
}


@pytest.mark.parametrize("machine", MACHINES)
def test_e24_calls_that_no_capability_opens(machine):
    calls = Calls(ALL_CAPABILITIES, machine)
    open_ones = [
        name
        for name in CLOSED_TO_ALL.split()
        if name in calls.numbers and calls(name) not in (EPERM, ENOSYS)
    ]
    assert open_ones == []


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("capability", CLOSED_WITHOUT)
def test_e24_calls_that_one_capability_opens(capability, machine):
    names = CLOSED_WITHOUT[capability].split()
    without, with_it = Calls((), machine), Calls((capability,), machine)
    assert [without(name) for name in names] == [EPERM] * len(names)
    assert [with_it(name) for name in names] == [ALLOW] * len(names)


@pytest.mark.parametrize("machine", MACHINES)
def test_e24_clone_makes_no_namespaces_without_sys_admin(machine):
    calls = Calls(DEFAULT_CAPABILITIES, machine)
    thread = 0x003D0F00
    assert calls("clone", thread) == calls("clone", 17) == ALLOW
    for bit in (17, 25, 26, 27, 28, 29, 30):
        assert calls("clone", 17 | 1 << bit) == EPERM, bit
    assert calls("clone3") == ENOSYS
    admin = Calls(("CAP_SYS_ADMIN",), machine)
    assert admin("clone", 0x7E020000) == admin("clone3") == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
def test_e24_socket_families(machine):
    calls = Calls(DEFAULT_CAPABILITIES, machine)
    af_alg, af_vsock = 38, 40
    for family in range(64):
        wanted = EPERM if family in (af_alg, af_vsock) else ALLOW
        assert calls("socket", family) == wanted, family


@pytest.mark.parametrize("family", [38, 40])
def test_e24_socket_families_are_judged_by_the_bits_that_the_kernel_reads(family):
    calls = Calls(DEFAULT_CAPABILITIES, "x86_64")
    assert calls("socket", family | 1 << 32) == calls("socket", family | 0xFFFFFFFF << 32) == EPERM
    assert calls("socket", 2 | 1 << 32) == ALLOW


def test_e24_personality_only_as_it_was():
    calls = Calls(ALL_CAPABILITIES, "x86_64")
    address_no_randomize = 0x0040000
    assert calls("personality", 0) == calls("personality", 0xFFFFFFFF) == ALLOW
    assert calls("personality", address_no_randomize) == EPERM


def test_calls_newer_than_the_profile_are_enosys():
    calls = Calls(DEFAULT_CAPABILITIES, "x86_64")
    assert calls("removexattrat") == ALLOW
    assert calls("open_tree_attr") == calls("file_getattr") == calls.machine.run(600) == ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
def test_every_name_of_the_profile_is_a_call_of_some_machine(machine):
    known = set(syscall_numbers("x86_64")) | set(syscall_numbers("aarch64"))
    profile = default_profile(frozenset(ALL_CAPABILITIES), machine)
    assert {name for rule in profile.syscalls for name in rule.names} <= known


def test_program_is_small():
    assert len(compile_filter(default_profile(DEFAULT_CAPABILITIES, "x86_64"), "x86_64")) // 8 < 200
