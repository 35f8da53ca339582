"""What a command is, and what commands share: the client, id prefixes, output."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from polypod.client import CriClient

T = TypeVar("T")
SHORT_ID = 13


class Usage(Exception):
    """The command line itself is wrong; the text says what to give instead."""


@dataclass(frozen=True, slots=True)
class Command:
    """One sub-command: name, one line, arguments, function, examples."""

    name: str
    summary: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    examples: str = ""

    def add_to(
        self,
        sub: argparse._SubParsersAction[argparse.ArgumentParser],
        *,
        shown: bool = True,
        complete: bool = True,
    ) -> None:
        """Make the sub-parser.

        Args:
            sub: of the parser or command above.
            shown: list it in the help of that.
            complete: with its arguments; one that will not be chosen can do without.
        """
        listed: dict[str, Any] = {"help": self.summary} if shown else {}
        parser = sub.add_parser(
            self.name,
            description=self.summary,
            epilog=f"examples:\n{self.examples}" if self.examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **listed,
        )
        parser.set_defaults(run=self.run)
        if complete:
            self.configure(parser)


def json_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="JSON instead of text")


def with_client(args: argparse.Namespace, work: Callable[[CriClient], Awaitable[T]]) -> T:
    """Connect, do the work, close."""

    async def session() -> T:
        async with CriClient(args.endpoint) as cri:
            return await work(cri)

    return asyncio.run(session())


def emit(text: str) -> None:
    """Write one piece of output."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def emit_json(value: object) -> None:
    """Write JSON."""
    emit(json.dumps(value, indent=2, sort_keys=True, default=str))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table: coloured heads on a terminal, plain columns elsewhere."""
    items = [tuple(row) for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        out = Table(box=None, pad_edge=False, header_style="bold cyan")
        for column in columns:
            out.add_column(column, overflow="fold")
        for row in items:
            out.add_row(*row)
        Console().print(out, markup=False)
        return
    widths = [max(len(cell) for cell in cells) for cells in zip(columns, *items, strict=True)]
    for row in (tuple(columns), *items):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        emit(line.rstrip())


async def find_container(cri: CriClient, wanted: str) -> str:
    """Return the id of a container by name, id or id prefix.

    Raises:
        Usage: none, or several.
    """
    items = [(c.id, c.metadata.name) for c in await cri.list_containers()]
    return _one(items, wanted, "container")


async def find_any(cri: CriClient, wanted: str) -> tuple[str, str]:
    """Return (``pod`` or ``container``, id) of what a name or prefix means; pods come first."""
    pods = [(p.id, p.metadata.name) for p in await cri.list_sandboxes()]
    if _matches(pods, wanted):
        return "pod", _one(pods, wanted, "pod")
    containers = [(c.id, c.metadata.name) for c in await cri.list_containers()]
    return "container", _one(containers, wanted, "pod or container")


def _matches(items: Sequence[tuple[str, str]], wanted: str) -> list[str]:
    exact = [id_ for id_, name in items if wanted in {id_, name}]
    return exact or [id_ for id_, _ in items if wanted and id_.startswith(wanted)]


def _one(items: Sequence[tuple[str, str]], wanted: str, what: str) -> str:
    found = _matches(items, wanted)
    if not found:
        raise Usage(f"no {what} {wanted!r}; `polypod ps` lists them")
    if len(found) > 1:
        some = ", ".join(id_[:SHORT_ID] for id_ in found[:5])
        raise Usage(f"{wanted!r} means {len(found)} of them ({some}): give more of the id")
    return found[0]
