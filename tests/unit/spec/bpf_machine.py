"""Runs classic BPF programs as the kernel does for seccomp: the judge of what the compiler made."""

import struct

MAX_STEPS = 4096


class SeccompMachine:
    """One program, checked as the kernel's loader checks it, then run on struct seccomp_data."""

    LOAD, AND, JUMP, RETURN = 0x20, 0x54, 0x05, 0x06
    TESTS = (0x15, 0x25, 0x35, 0x45)

    def __init__(self, program):
        assert len(program) % 8 == 0
        self.code = list(struct.iter_unpack("<HBBI", program))
        assert 0 < len(self.code) <= 4096
        for index, (code, true, false, value) in enumerate(self.code):
            left = len(self.code) - index - 1
            if code in self.TESTS:
                assert max(true, false) < left
            elif code == self.JUMP:
                assert value < left
            elif code == self.LOAD:
                assert value in range(0, 64, 4)
                assert left
            else:
                assert code in (self.AND, self.RETURN), hex(code)
                assert code == self.RETURN or left
        self.steps = 0

    def run(self, number, args=(), arch=0xC000003E):
        """Return the action for one call."""
        words = [number & 0xFFFFFFFF, arch, 0, 0]
        for value in (*args, *(0,) * (6 - len(args))):
            words += [value & 0xFFFFFFFF, value >> 32]
        accumulator, at, code = 0, 0, self.code
        while True:
            self.steps += 1
            operation, true, false, value = code[at]
            at += 1
            if operation == 0x35:
                at += true if accumulator >= value else false
            elif operation == 0x15:
                at += true if accumulator == value else false
            elif operation == 0x20:
                accumulator = words[value >> 2]
            elif operation == 0x06:
                return value
            elif operation == 0x25:
                at += true if accumulator > value else false
            elif operation == 0x54:
                accumulator &= value
            elif operation == 0x05:
                at += value
            else:
                at += true if accumulator & value else false

    def constant_allow(self, number, arch=0xC000003E):
        """Tell whether the kernel (seccomp_is_const_allow) may skip the program for this number."""
        accumulator, at = 0, 0
        for _ in range(MAX_STEPS):
            operation, true, false, value = self.code[at]
            at += 1
            if operation == 0x20:
                if value not in (0, 4):
                    return False
                accumulator = number if value == 0 else arch
            elif operation == 0x06:
                return value == 0x7FFF0000
            elif operation == 0x05:
                at += value
            elif operation == 0x54:
                accumulator &= value
            else:
                holds = {
                    0x15: accumulator == value,
                    0x25: accumulator > value,
                    0x35: accumulator >= value,
                    0x45: bool(accumulator & value),
                }[operation]
                at += true if holds else false
        raise AssertionError("the program does not end")
