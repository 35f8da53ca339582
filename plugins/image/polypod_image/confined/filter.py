"""The system calls that unpacking needs; every other one fails, and those that matter most kill the process.

Spec:
    Reliability I2. What a call does is told by its man page; names of other machines are left out.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from polypod.plugin.oci import Seccomp, SeccompArg, SeccompRule
from polypod.spec.seccomp import compile_filter

_FILES: Final = (
    *("openat", "open", "openat2", "close", "close_range", "read", "readv", "pread64", "write"),
    *("writev", "pwrite64", "lseek", "ftruncate", "fallocate", "sendfile", "copy_file_range"),
    *("dup", "dup3", "fcntl", "fadvise64", "getdents64"),
    *("fstat", "newfstatat", "stat", "lstat", "statx", "statfs", "fstatfs"),
    *("readlink", "readlinkat", "access", "faccessat", "faccessat2"),
    *("mkdir", "mkdirat", "mknod", "mknodat", "symlink", "symlinkat", "link", "linkat"),
    *("unlink", "unlinkat", "rmdir", "rename", "renameat", "renameat2"),
    *("chown", "fchown", "lchown", "fchownat", "chmod", "fchmod", "fchmodat", "fchmodat2"),
    *("utimensat", "utimes", "futimesat"),
    *("getxattr", "lgetxattr", "fgetxattr", "listxattr", "llistxattr", "flistxattr"),
    *("setxattr", "lsetxattr", "fsetxattr"),
)
_PROCESS: Final = (
    *("brk", "munmap", "mremap", "madvise", "futex", "rseq", "sched_yield", "getrandom"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall"),
    *("clock_gettime", "clock_nanosleep", "gettimeofday", "getrusage"),
    *("getpid", "gettid", "getuid", "geteuid", "getgid", "getegid", "exit", "exit_group"),
    *("poll", "ppoll", "sendto", "sendmsg"),
)
_FATAL: Final = (
    *("execve", "execveat", "fork", "vfork", "clone", "clone3", "socket", "connect", "bind"),
    *("mount", "umount2", "move_mount", "open_tree", "fsopen", "mount_setattr", "pivot_root"),
    *("unshare", "setns", "chroot", "ptrace", "process_vm_readv", "process_vm_writev", "bpf"),
    *("kill", "tkill", "tgkill", "pidfd_send_signal", "pidfd_getfd", "init_module"),
    *("finit_module", "kexec_load", "perf_event_open", "io_uring_setup", "userfaultfd", "keyctl"),
    *("open_by_handle_at", "name_to_handle_at", "reboot", "swapon", "ioperm", "iopl"),
)
_PROT_EXEC: Final = 4


@cache
def program() -> bytes:
    """Return the program for this machine."""
    no_code = SeccompArg(2, _PROT_EXEC, "SCMP_CMP_MASKED_EQ", 0)
    return compile_filter(
        Seccomp(
            "SCMP_ACT_ERRNO",
            syscalls=(
                SeccompRule((*_FILES, *_PROCESS), "SCMP_ACT_ALLOW"),
                SeccompRule(("mmap", "mprotect"), "SCMP_ACT_ALLOW", args=(no_code,)),
                SeccompRule(_FATAL, "SCMP_ACT_KILL_PROCESS"),
            ),
        )
    )
