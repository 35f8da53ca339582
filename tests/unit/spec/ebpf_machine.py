"""Runs extended BPF programs of the kind that guard devices: an interpreter of what they use."""

import struct

# linux/bpf_common.h and linux/bpf.h.
LOAD_WORD, MOVE, AND, AND_REGISTER, SHIFT_RIGHT = 0x61, 0xB7, 0x57, 0x5F, 0x77
MOVE_REGISTER, JUMP, EQUAL, NOT_EQUAL, SET, EXIT = 0xBF, 0x05, 0x15, 0x55, 0x45, 0x95


def run_device_program(program, kind, major, minor, access):
    """Return r0 for one access: ``kind`` 1 block, 2 character; access bits 1 mknod, 2 read, 4 write."""
    code = list(struct.iter_unpack("<BBhi", program))
    context = {0: access << 16 | kind, 4: major, 8: minor}
    registers = {1: "context"}
    at = 0
    for _ in range(len(code) + 1):
        operation, pair, offset, value = code[at]
        target, source = pair & 15, pair >> 4
        at += 1
        if operation == LOAD_WORD:
            assert registers[source] == "context"
            registers[target] = context[offset]
        elif operation == MOVE:
            registers[target] = value
        elif operation == MOVE_REGISTER:
            registers[target] = registers[source]
        elif operation == AND:
            registers[target] &= value & 0xFFFFFFFFFFFFFFFF
        elif operation == SHIFT_RIGHT:
            registers[target] >>= value
        elif operation == JUMP:
            at += offset
        elif operation == EQUAL:
            at += offset if registers[target] == value else 0
        elif operation == NOT_EQUAL:
            at += offset if registers[target] != value else 0
        elif operation == SET:
            at += offset if registers[target] & value else 0
        elif operation == EXIT:
            return registers[0]
        else:
            raise AssertionError(f"unknown operation {operation:#x}")
        assert 0 <= at < len(code)
    raise AssertionError("the program does not end")
