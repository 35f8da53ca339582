"""Builds the parser from the tables of commands, runs one, turns errors into one line and a code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import polypod
from polypod.cli import completion, forwarding, images, pods, processes, running, serving
from polypod.cli.command import Command, Usage
from polypod.cli.extensions import plugin_commands
from polypod.client import CriError
from polypod.plugin.errors import PolypodError

DEFAULT_ENDPOINT = "unix:///run/polypod/polypod.sock"
_EPILOG = """\
first steps:
  polypod serve &                         start the server
  polypod image from-host /bin/busybox --applets --load
  polypod run --rm localhost/demo:latest echo hello
  polypod ps                              what runs
  polypod COMMAND --help                  options and examples of a command

exit status:
  0 done, 1 refused or failed, 2 wrong usage, 130 interrupted;
  run and exec answer the program's own code

environment:
  POLYPOD_ENDPOINT    the CRI socket, as --endpoint gives it

files:
  /etc/polypod/config.toml     read by serve, down, plugins and config show if it exists;
                               `polypod config default` prints every key
  /run/polypod/polypod.sock    the CRI socket
  /var/lib/polypod             records, images and leases: what survives a reboot
  /run/polypod                 what dies with the boot
"""


def commands() -> tuple[Command, ...]:
    """Return every built-in command, in the order of ``--help``."""
    return (
        *serving.COMMANDS,
        *pods.COMMANDS,
        *running.COMMANDS,
        *processes.COMMANDS,
        *forwarding.COMMANDS,
        *images.COMMANDS,
        *completion.COMMANDS,
    )


def build_parser(chosen: str = "") -> argparse.ArgumentParser:
    """Return the whole parser, plugins' commands included.

    Args:
        chosen: a built-in command: the others stay without arguments then, and no plugin is loaded.
    """
    parser = argparse.ArgumentParser(
        prog="polypod",
        description="One CRI endpoint, many isolation backends.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"polypod {polypod.__version__}")
    parser.add_argument(
        "--endpoint",
        "-e",
        default=os.environ.get("POLYPOD_ENDPOINT", DEFAULT_ENDPOINT),
        help="the CRI socket to talk to (default: $POLYPOD_ENDPOINT, else %(default)s)",
    )
    sub = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    taken = set()
    for command in commands():
        taken.add(command.name)
        command.add_to(sub, complete=chosen in {"", command.name})
    for offered in plugin_commands() if not chosen else ():
        if offered.name not in taken:
            taken.add(offered.name)
            # What a plugin offers as `image-NAME` is shown as `image NAME`.
            offered.add_to(sub, shown=not offered.name.startswith("image-"))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the answer is the exit code.

    0 done, 1 refused or failed, 2 wrong usage, 130 interrupted; ``run`` and ``exec`` answer the
    program's own code.
    """
    words = sys.argv[1:] if argv is None else argv
    parser = build_parser(_chosen(words))
    args = parser.parse_args(words)
    args.parser = parser
    try:
        return int(args.run(args))
    except Usage as error:
        print(f"polypod {args.command}: {error}", file=sys.stderr)  # noqa: T201 - a command's output
        return 2
    except CriError as error:
        print(f"polypod: {_explained(error, args.endpoint)}", file=sys.stderr)  # noqa: T201
        return 1
    except PolypodError as error:
        print(f"polypod: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except BrokenPipeError:
        # `polypod ps | head`: the reader has what it wanted.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except KeyboardInterrupt:
        return 130


def _chosen(words: Sequence[str]) -> str:
    """Return the built-in command that a line begins with, if nothing else needs to be known of it."""
    first = words[0] if words else ""
    if first in {"--endpoint", "-e"} and len(words) > 2:
        first = words[2]
    known = {command.name for command in commands()} - {"completion"}
    return first if first in known else ""


def _explained(error: CriError, endpoint: str) -> str:
    if error.code.name == "UNAVAILABLE" and "connect" in error.text.lower():
        return f"nobody answers on {endpoint}: start `polypod serve`, or give --endpoint"
    return str(error)
