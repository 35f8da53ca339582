"""Commands that plugins offer. A plugin that does not import costs its commands, nothing else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points

from polypod.cli.command import Command
from polypod.plugin.observer import CommandType


def plugin_commands() -> Iterator[Command]:
    """Yield what the installed plugins offer."""
    for offered in command_types():
        yield Command(offered.name, offered.summary, offered.configure, offered.run)


@cache
def command_types() -> tuple[CommandType, ...]:
    """Return the commands as offered; asked once, so that a broken plugin is named once."""
    return tuple(_offered())


def _offered() -> Iterator[CommandType]:
    for point in sorted(entry_points(group="polypod"), key=lambda p: p.name):
        try:
            yield from point.load().polypod_commands()
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything
            sys.stderr.write(f"polypod: plugin {point.name} offers no commands: {error}\n")
