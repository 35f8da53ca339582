"""The guest's Python: this host's interpreter with exactly the modules and libraries that the child side loads.

They are found by loading them: a child process imports everything that the guest will ever need from a
copy of our sources, and tells which modules and which shared libraries that took.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from polypod.plugin import BackendError
from polypod_vm import cpio

_ENTRY = "polypod_vm_child.guest_init"
_NEEDED = (
    _ENTRY,
    "polypod_vm_child.guest_bridge",
    "polypod_vm_child.guest_network",
    "polypod_vm_child.guest_usage",
    "polypod.backend.cgroups",
    "polypod.backend.devicefilter",
    "polypod.backend.limits",
    "encodings.utf_8",
    "encodings.ascii",
    "encodings.latin_1",
    "encodings.idna",
    "base64",
)
_OURS = ("polypod.plan", "polypod.supervisor", "polypod_vm_child")
"""Packages that are taken as a whole."""
_SINGLE = (
    "polypod.plugin.errors",
    "polypod.plugin.ids",
    "polypod.plugin.requests",
    "polypod.plugin.runtime",
    "polypod.backend.cgroups",
    "polypod.backend.devicefilter",
    "polypod.backend.limits",
    "polypod.backend.usage",
)
"""Modules whose packages' own ``__init__`` would load far more than they need."""
_TRACE = """
import ctypes, importlib, json, sys
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    importlib.import_module(name)
class Info(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("name", ctypes.c_char_p)]
libraries = []
@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Info), ctypes.c_size_t, ctypes.c_void_p)
def visit(info, size, data):
    libraries.append((info.contents.name or b"").decode())
    return 0
ctypes.CDLL(None).dl_iterate_phdr(visit, None)
modules = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
print(json.dumps({"libraries": libraries, "modules": modules}))
"""
_COMPILE = """
import importlib.util, marshal, sys
for line in sys.stdin:
    source, name, target = line.rstrip("\\n").split("\\t")
    with open(source, "rb") as file:
        text = file.read()
    code = compile(text, name, "exec", dont_inherit=True, optimize=2)
    head = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + importlib.util.source_hash(text)
    with open(target, "wb") as file:
        file.write(head + marshal.dumps(code))
"""
"""Hash-based and unchecked: no time and no path of this host is in the result."""


@dataclass(frozen=True, slots=True)
class Traced:
    """What the interpreter loaded."""

    modules: dict[str, Path]
    libraries: tuple[Path, ...]


def interpreter() -> Path:
    """Return the interpreter that is copied: the one that we run, without its virtual environment."""
    return Path(getattr(sys, "_base_executable", "") or sys.executable).resolve()


def entries(work: Path) -> list[cpio.Entry]:
    """Return the files of the guest's Python, of our code, and the first process.

    Args:
        work: an empty directory for what is made on the way.
    """
    staged = work / "staged"
    _stage(staged)
    traced = _trace(staged)
    found = list(_interpreter_entries(traced.libraries))
    found += _module_entries(traced.modules, work / "compiled")
    start = (
        "#!/usr/bin/python3 -ISEB\n"
        f"from {_ENTRY} import main\n"
        "main()\n"
    )  # fmt: skip
    return [*found, cpio.file("init", start.encode(), 0o755)]


def _stage(target: Path) -> None:
    """Copy our own code, with empty packages where the real ones would load what nobody needs."""
    for package in _OURS:
        source = _directory_of(package)
        where = target / package.replace(".", "/")
        shutil.copytree(source, where, ignore=shutil.ignore_patterns("__pycache__", "*.pyi"))
    for module in _SINGLE:
        package, _, name = module.rpartition(".")
        where = target / package.replace(".", "/")
        where.mkdir(parents=True, exist_ok=True)
        shutil.copy(_directory_of(package) / f"{name}.py", where)
    for package in {"polypod", *(each.rpartition(".")[0] for each in _SINGLE)}:
        (target / package.replace(".", "/") / "__init__.py").write_text("")


def _directory_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise BackendError(
            f"package {package} is not installed: the guest cannot be built without it"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _trace(staged: Path) -> Traced:
    arguments = [str(interpreter()), "-I", "-S", "-E", "-B", "-c", _TRACE, str(staged), *_NEEDED]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BackendError(f"the guest's modules cannot be loaded: {done.stderr.strip()[-1000:]}")
    told = json.loads(done.stdout)
    modules = {name: Path(path) for name, path in told["modules"].items() if path}
    libraries = tuple(Path(path) for path in told["libraries"] if path.startswith("/"))
    return Traced(modules, libraries)


def _interpreter_entries(libraries: tuple[Path, ...]) -> Iterator[cpio.Entry]:
    yield cpio.file("usr/bin/python3", loadable(interpreter().read_bytes()), 0o755)
    yield cpio.link("lib", "usr/lib")
    yield cpio.link("lib64", "usr/lib")
    for path in libraries:
        if "lib-dynload" not in path.parts:
            yield cpio.file(f"usr/lib/{path.name}", loadable(path.read_bytes()), 0o755)


_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_ELF_SEGMENT = struct.Struct("<IIQQQQQQ")


def loadable(content: bytes) -> bytes:
    """Return an ELF file without what the loader does not read: symbols for debuggers, section tables.

    Spec:
        elf(5): segments are what is mapped; sections are for linkers and debuggers.
    """
    fields = list(_ELF_HEADER.unpack_from(content))
    segments, size, count = fields[5], fields[9], fields[10]
    end = segments + size * count
    for number in range(count):
        segment = _ELF_SEGMENT.unpack_from(content, segments + number * size)
        end = max(end, segment[2] + segment[5])
    fields[6] = fields[12] = fields[13] = 0
    return _ELF_HEADER.pack(*fields) + content[_ELF_HEADER.size : end]


def _module_entries(modules: dict[str, Path], compiled: Path) -> list[cpio.Entry]:
    compiled.mkdir()
    home = f"usr/lib/python{sys.version_info[0]}.{sys.version_info[1]}"
    found: list[cpio.Entry] = [cpio.directory(f"{home}/lib-dynload")]
    jobs: list[tuple[str, Path, Path]] = []
    for name, path in sorted(modules.items()):
        if name == "__main__":
            continue
        if path.suffix == ".so":
            content = loadable(path.read_bytes())
            found.append(cpio.file(f"{home}/lib-dynload/{path.name}", content, 0o755))
            continue
        inside = name.replace(".", "/") + ("/__init__" if path.name == "__init__.py" else "")
        jobs.append((f"{home}/{inside}.pyc", path, compiled / f"{len(jobs)}.pyc"))
    _compile(jobs)
    found += [cpio.file(name, target.read_bytes()) for name, _source, target in jobs]
    if not any(entry.name == f"{home}/os.pyc" for entry in found):
        # The interpreter finds its home by this file.
        raise BackendError(f"{sysconfig.get_path('stdlib')}: os.py was not loaded")
    return found


def _compile(jobs: list[tuple[str, Path, Path]]) -> None:
    lines = "".join(f"{source}\t{name}\t{target}\n" for name, source, target in jobs)
    arguments = [str(interpreter()), "-I", "-S", "-E", "-B", "-c", _COMPILE]
    subprocess.run(arguments, input=lines, text=True, check=True, capture_output=True)
