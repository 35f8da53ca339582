"""RuntimeDefault: the seccomp profile of a container that asks for none of its own.

An allow-list: what is not named gives EPERM. It carries over which calls the field's default list (moby)
allows, and what it ties to a capability; the form is ours, sorted by what the calls are for. Calls
that only 32-bit ABIs have are left out, because those ABIs are killed (``polypod.spec.seccomp``).

Without the capability that stands beside them, among others these stay closed (E24): mount and the new
mount calls, unshare, setns, clone with namespaces, bpf, perf_event_open, open_by_handle_at, kexec,
modules, clocks. Closed to all: keyctl and its kin, io_uring, userfaultfd, and what is obsolete.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Final

from polypod.plugin.oci import Seccomp, SeccompArg, SeccompRule
from polypod.spec.seccomp_profile import parse_profile

__all__ = ["default_profile", "parse_profile"]

_ALLOW: Final = "SCMP_ACT_ALLOW"
_ERRNO: Final = "SCMP_ACT_ERRNO"
_EPERM: Final = 1
_ENOSYS: Final = 38

_FILES: Final = """
    access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2
    fadvise64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync flock fstat fstatfs
    fsync ftruncate futimesat getcwd getdents getdents64 ioctl lchown link linkat lseek lstat mkdir mkdirat
    mknod mknodat name_to_handle_at newfstatat open openat openat2 pipe pipe2 pread64 preadv preadv2 pwrite64
    pwritev pwritev2 read readahead readlink readlinkat readv rename renameat renameat2 rmdir sendfile splice
    stat statfs statx symlink symlinkat sync sync_file_range syncfs tee truncate umask unlink unlinkat utime
    utimensat utimes vmsplice write writev
"""
_ATTRIBUTES: Final = """
    fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat llistxattr
    lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat
"""
_MOUNT_FACTS: Final = "listmount statmount"
_EVENTS: Final = """
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old
    eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch poll ppoll
    pselect6 select signalfd signalfd4 timerfd_create timerfd_gettime timerfd_settime
"""
_ASYNCHRONOUS_IO: Final = """
    io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit
"""
_MEMORY: Final = """
    brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall
    mmap mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect
    process_mrelease remap_file_pages
"""
_PROCESSES: Final = """
    execve execveat exit exit_group fork getpgid getpgrp getpid getppid getrusage getsid gettid kill pause
    pidfd_open pidfd_send_signal prctl process_vm_readv process_vm_writev ptrace restart_syscall setpgid
    setsid set_tid_address tgkill times tkill vfork wait4 waitid
"""
_SIGNALS: Final = """
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
    rt_tgsigqueueinfo sigaltstack
"""
_IDENTITY: Final = """
    capget capset getegid geteuid getgid getgroups getresgid getresuid getuid setfsgid setfsuid setgid
    setgroups setregid setresgid setresuid setreuid setuid
"""
_SCHEDULING: Final = """
    getcpu getpriority ioprio_get ioprio_set sched_getaffinity sched_getattr sched_getparam
    sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval sched_setaffinity
    sched_setattr sched_setparam sched_setscheduler sched_yield setpriority
"""
_LIMITS_AND_SYSTEM: Final = "getrandom getrlimit prlimit64 setrlimit sysinfo uname"
_THREADS: Final = """
    futex futex_requeue futex_wait futex_waitv futex_wake get_robust_list get_thread_area rseq
    set_robust_list set_thread_area
"""
_CLOCKS: Final = """
    adjtimex alarm clock_adjtime clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep
    setitimer time timer_create timer_delete timer_getoverrun timer_gettime timer_settime
"""
_SOCKETS: Final = """
    accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg
    sendmsg sendto setsockopt shutdown socketpair
"""
_IPC: Final = """
    mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd semctl
    semget semop semtimedop shmat shmctl shmdt shmget
"""
_CONFINEMENT: Final = """
    landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp
"""
_MACHINE: Final = {
    "x86_64": "arch_prctl modify_ldt uretprobe",
    "aarch64": "",
}

_BY_CAPABILITY: Final = {
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYSLOG": "syslog",
    "CAP_SYS_ADMIN": """
        bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr
        lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl
        quotactl_fd setdomainname sethostname setns syslog umount2 unshare
    """,
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_settime settimeofday",
    "CAP_SYS_TTY_CONFIG": "vhangup",
}

# linux/sched.h: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
_NAMESPACE_FLAGS: Final = 0x7E02_0000
# linux/personality.h: PER_LINUX, PER_LINUX32, each also with UNAME26, and the question for the present one.
_PERSONALITIES: Final = (0x0, 0x8, 0x2_0000, 0x2_0008, 0xFFFF_FFFF)
# Socket families 0 to 63 but AF_ALG (38) and AF_VSOCK (40), as (mask, value) pairs. The kernel reads 32 bits
# of the argument: comparing 64 would let 38 + 2³² through.
_FAMILIES: Final = (
    (0xFFFF_FFE0, 0),
    (0xFFFF_FFFC, 32),
    (0xFFFF_FFFE, 36),
    (0xFFFF_FFFF, 39),
    (0xFFFF_FFFF, 41),
    (0xFFFF_FFFE, 42),
    (0xFFFF_FFFC, 44),
    (0xFFFF_FFF0, 48),
)


def default_profile(capabilities: frozenset[str], machine: str | None = None) -> Seccomp:
    """Return RuntimeDefault for a container with a bounding set of capabilities.

    Args:
        capabilities: names with ``CAP_``.
        machine: as ``uname -m`` names it; None = this host's.
    """
    return _default_profile(capabilities, os.uname().machine if machine is None else machine)


@lru_cache(maxsize=64)
def _default_profile(capabilities: frozenset[str], machine: str) -> Seccomp:
    rules = [SeccompRule(_always(machine), _ALLOW)]
    rules += [
        SeccompRule(tuple(names.split()), _ALLOW)
        for capability, names in _BY_CAPABILITY.items()
        if capability in capabilities
    ]
    rules += [_masked("socket", mask, family) for mask, family in _FAMILIES]
    rules += [
        SeccompRule(("personality",), _ALLOW, None, (SeccompArg(0, value, "SCMP_CMP_EQ"),))
        for value in _PERSONALITIES
    ]
    if "CAP_SYS_ADMIN" not in capabilities:
        rules.append(_masked("clone", _NAMESPACE_FLAGS, 0))
        # Its flags lie in memory, where no filter can look; ENOSYS makes C libraries take clone.
        rules.append(SeccompRule(("clone3",), _ERRNO, _ENOSYS))
    return Seccomp(_ERRNO, _EPERM, syscalls=tuple(rules))


def _always(machine: str) -> tuple[str, ...]:
    groups = (
        _FILES,
        _ATTRIBUTES,
        _MOUNT_FACTS,
        _EVENTS,
        _ASYNCHRONOUS_IO,
        _MEMORY,
        _PROCESSES,
        _SIGNALS,
        _IDENTITY,
        _SCHEDULING,
        _LIMITS_AND_SYSTEM,
        _THREADS,
        _CLOCKS,
        _SOCKETS,
        _IPC,
        _CONFINEMENT,
        _MACHINE.get(machine, ""),
    )
    return tuple(" ".join(groups).split())


def _masked(name: str, mask: int, value: int) -> SeccompRule:
    return SeccompRule((name,), _ALLOW, None, (SeccompArg(0, mask, "SCMP_CMP_MASKED_EQ", value),))
