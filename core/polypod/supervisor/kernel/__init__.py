"""System calls by ctypes, one function per call, the kernel's names; no logic."""
