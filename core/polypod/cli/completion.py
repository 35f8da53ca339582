"""completion: a script for bash or zsh, made from the parser, so that it cannot be out of date."""

from __future__ import annotations

import argparse

from polypod.cli.command import Command, emit


def words(parser: argparse.ArgumentParser, prefix: str = "") -> dict[str, list[str]]:
    """Return what may follow each command (``""``, ``ps``, ``config show``)."""
    found: dict[str, list[str]] = {prefix: []}
    for action in parser._actions:  # noqa: SLF001 - argparse has no public way to list them
        found[prefix] += [text for text in action.option_strings if text.startswith("--")]
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for name, child in action.choices.items():
                found[prefix].append(name)
                found |= words(child, f"{prefix} {name}".strip())
    return found


def script(parser: argparse.ArgumentParser) -> str:
    """Return the bash script; zsh runs it through bashcompinit."""
    cases = "\n".join(
        f'        "{command}") offer="{" ".join(offer)}" ;;'
        for command, offer in sorted(words(parser).items())
    )
    return f"""\
_polypod() {{
    local word command="" offer=""
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$word" in -*) ;; *) command="${{command:+$command }}$word" ;; esac
    done
    while :; do
        case "$command" in
{cases}
        esac
        [[ -n $offer || -z $command ]] && break
        [[ $command == *" "* ]] && command="${{command% *}}" || command=""
    done
    mapfile -t COMPREPLY < <(compgen -W "$offer" -- "${{COMP_WORDS[COMP_CWORD]}}")
}}
complete -o default -F _polypod polypod
"""


def completion(args: argparse.Namespace) -> int:
    """Print the script."""
    head = "autoload -U +X bashcompinit && bashcompinit\n" if args.shell == "zsh" else ""
    text = script(args.parser)
    if args.shell == "zsh":
        # zsh has no mapfile.
        text = text.replace("mapfile -t COMPREPLY < <(", "COMPREPLY=($(").replace(
            '[COMP_CWORD]}")\n', '[COMP_CWORD]}"))\n'
        )
    emit(head + text)
    return 0


COMMANDS = (
    Command(
        "completion",
        "print a completion script for bash or zsh",
        lambda p: (p.add_argument("shell", choices=("bash", "zsh")), None)[1],
        completion,
        "  source <(polypod completion bash)",
    ),
)
