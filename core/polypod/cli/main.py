"""Builds the parser from the tables of commands, runs one, turns errors into one line and a code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import polypod
from polypod.cli import completion, images, pods, processes, running, serving
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
        *images.COMMANDS,
        *completion.COMMANDS,
    )


def build_parser() -> argparse.ArgumentParser:
    """Return the whole parser, plugins' commands included."""
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
        command.add_to(sub)
    for offered in plugin_commands():
        if offered.name not in taken:
            taken.add(offered.name)
            offered.add_to(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the answer is the exit code.

    0 done, 1 refused or failed, 2 wrong usage, 130 interrupted; ``run`` and ``exec`` answer the
    program's own code.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
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


def _explained(error: CriError, endpoint: str) -> str:
    if error.code.name == "UNAVAILABLE" and "connect" in error.text.lower():
        return f"nobody answers on {endpoint}: start `polypod serve`, or give --endpoint"
    return str(error)
