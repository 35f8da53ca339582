"""Makes the helpers of these tests importable by name."""

import importlib.util
import sys
from pathlib import Path

for _name in ("bpf_machine", "seccomp_oracle", "ebpf_machine"):
    _spec = importlib.util.spec_from_file_location(
        f"polypod_test_{_name}", Path(__file__).with_name(f"{_name}.py")
    )
    sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_spec.name])
