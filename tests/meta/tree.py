"""The tracked files of the tree, and their syntax."""

import ast
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GENERATED = "core/polypod/api/v1/"


@cache
def files(suffix: str = "") -> tuple[Path, ...]:
    """Every file that git knows or would take in."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
        found = [ROOT / name for name in done.stdout.splitlines()]
    except (OSError, subprocess.CalledProcessError):  # an unpacked archive: no git, nothing ignored
        hidden = {".venv", ".git", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
        found = [path for path in ROOT.rglob("*") if not hidden & set(path.parts)]
    return tuple(sorted(path for path in found if path.is_file() and path.name.endswith(suffix)))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def sources(*tops: str) -> list[Path]:
    """Our own Python files below some directories, without generated ones."""
    return [
        path
        for path in files(".py")
        if name(path).startswith(tops) and not name(path).startswith(GENERATED)
    ]


@cache
def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(path: Path):
    """Yield (qualified name, node) of every function of a file."""

    def walk(node, prefix):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                full = f"{prefix}{child.name}"
                if not isinstance(child, ast.ClassDef):
                    yield full, child
                yield from walk(child, f"{full}.")
            else:
                yield from walk(child, prefix)

    yield from walk(syntax(path), "")
