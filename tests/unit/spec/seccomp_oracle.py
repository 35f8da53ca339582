"""libseccomp through ctypes: an independent compiler of the same profiles."""

import ctypes
import os

ACTIONS = {
    "SCMP_ACT_KILL": 0x0,
    "SCMP_ACT_KILL_THREAD": 0x0,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
OPERATORS = {"NE": 1, "LT": 2, "LE": 3, "EQ": 4, "GE": 5, "GT": 6, "MASKED_EQ": 7}
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


def _library():
    lib = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    lib.seccomp_init.restype = ctypes.c_void_p
    lib.seccomp_init.argtypes = (ctypes.c_uint32,)
    lib.seccomp_arch_add.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
    lib.seccomp_arch_remove.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
    lib.seccomp_rule_add_array.argtypes = (
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(_Comparison),
    )
    lib.seccomp_export_bpf.argtypes = (ctypes.c_void_p, ctypes.c_int)
    lib.seccomp_release.argtypes = (ctypes.c_void_p,)
    lib.seccomp_syscall_resolve_name.argtypes = (ctypes.c_char_p,)
    lib.seccomp_syscall_resolve_name_arch.argtypes = (ctypes.c_uint32, ctypes.c_char_p)
    return lib


def _action(name, number):
    return ACTIONS[name] | (
        (1 if number is None else number) if "ERRNO" in name or "TRACE" in name else 0
    )


def known_numbers(names, machine):
    """Return name → number for the names that libseccomp knows on a machine."""
    lib = _library()
    found = {
        name: lib.seccomp_syscall_resolve_name_arch(ARCHITECTURES[machine], name.encode())
        for name in names
    }
    return {name: number for name, number in found.items() if number >= 0}


def oracle_filter(profile, machine):
    """Compile a profile the way that runc drives libseccomp, for one architecture."""
    lib = _library()
    default = _action(profile.default_action, profile.default_errno_ret)
    context = lib.seccomp_init(default)
    assert context
    arch = ARCHITECTURES[machine]
    try:
        if os.uname().machine != machine:
            assert lib.seccomp_arch_add(context, arch) == 0
            assert lib.seccomp_arch_remove(context, 0) == 0
        for rule in profile.syscalls:
            action = _action(rule.action, rule.errno_ret)
            if action == default:
                continue
            for name in rule.names:
                # The host's own number (or a negative stand-in), which the library translates.
                number = lib.seccomp_syscall_resolve_name(name.encode())
                if number != -1:
                    _add(lib, context, action, number, rule.args)
        file = os.memfd_create("filter")
        try:
            assert lib.seccomp_export_bpf(context, file) == 0
            return os.pread(file, os.fstat(file).st_size, 0)
        finally:
            os.close(file)
    finally:
        lib.seccomp_release(context)


def _add(lib, context, action, number, args):
    comparisons = [
        _Comparison(
            item.index, OPERATORS[item.op.removeprefix("SCMP_CMP_")], item.value, item.value_two
        )
        for item in args
    ]
    groups = [comparisons]
    if len({item.arg for item in comparisons}) < len(comparisons):
        groups = [[item] for item in comparisons]
    for group in groups:
        array = (_Comparison * len(group))(*group)
        result = lib.seccomp_rule_add_array(context, action, number, len(group), array)
        # A rule that an earlier one covers whole is refused as existing.
        assert result in (0, -17), result
