"""What the pages tell people to type exists: make targets, polypod commands, files."""

import re
import shlex
import subprocess

import polypod_meta_tree as tree
import pytest

from polypod.cli.main import build_parser

PAGES = [path for path in tree.files(".md") if "/data/" not in tree.name(path)]
MAKEFILE = (tree.ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def shell_lines():
    """Each command of the console blocks of the pages."""
    for page in PAGES:
        for block in re.findall(r"```(?:console|sh|shell)\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.splitlines():
                words = re.match(r"\s*[#$] (.+)", line)
                if words:
                    yield pytest.param(words[1], id=f"{tree.name(page)}: {words[1][:50]}")


def polypod_lines():
    """Each polypod command that a page shows, in a block or between back quotes."""
    for page in PAGES:
        text = page.read_text()
        for shown in re.findall(
            r"(?:^[#$] |`)(?:\.venv/bin/)?polypod ([a-z][^`\n#…]*)", text, re.M
        ):
            words = shlex.split(shown.replace("&", ""))
            yield pytest.param(words, id=f"{tree.name(page)}: polypod {shown.strip()[:40]}")


@pytest.mark.parametrize("line", list(shell_lines()))
def test_what_a_page_tells_to_type_exists(line):
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        assert set(words[1:]) <= TARGETS
    elif words[0].startswith((".venv/", "./")):
        assert words[0] in {".venv/bin/polypod", ".venv/bin/python", ".venv/bin/pytest"}
    else:
        assert words[0] in {"polypod", "pip", "python3", "crictl"}, line


@pytest.mark.parametrize("words", list(polypod_lines()))
def test_the_parser_knows_what_a_page_shows(words, capsys):
    """A sentence may name a command without its arguments: then its help knows every option shown."""
    try:
        build_parser().parse_args(words)
    except SystemExit as left:
        if left.code == 0:
            return
        assert "the following arguments are required" in capsys.readouterr().err
        with pytest.raises(SystemExit) as helped:
            build_parser().parse_args([*words, "--help"])
        assert helped.value.code == 0
        known = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", capsys.readouterr().out))
        assert {option for word in words for option in options(word)} <= known


def options(word):
    """The options in a word: ``--all``, or the letters of ``-it``."""
    if word.startswith("--"):
        return [word.partition("=")[0]]
    return [f"-{letter}" for letter in word[1:]] if word.startswith("-") else []


@pytest.mark.parametrize("page", PAGES, ids=tree.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_make_help_lists_every_target():
    done = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=tree.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    listed = set(re.findall(r"^  make ([a-z-]+)", done.stdout, re.MULTILINE))
    assert listed == TARGETS


def test_the_two_commands_of_the_readme_come_first():
    readme = (tree.ROOT / "README.md").read_text()
    block = readme[readme.index("## Two commands") :]
    assert re.findall(r"^# make (\w+)", block, re.MULTILINE)[:2] == ["demo", "test"]


def test_ci_runs_the_two_commands_of_contributing():
    script = (tree.ROOT / ".ci" / "run").read_text()
    assert re.findall(r"^(?:if ! )?make (\w+)", script, re.MULTILINE) == ["check", "test"]
