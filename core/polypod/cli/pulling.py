"""pull: bring images into the store, with a bar for each layer where somebody watches.

CRI's PullImage tells nothing until it ends. The server tells how far it is to ImageStatus with ``verbose``,
and that is asked while the pull runs.
"""

from __future__ import annotations

import argparse
import asyncio
import getpass
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from polypod.cli.command import Command, emit, emit_json, json_flag, with_client
from polypod.client import CriClient, CriError, pb

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_LOOK_S: Final = 0.15
_SHORT: Final = 19
"""Characters of a digest that are shown: ``sha256:`` and twelve."""


class Screen(Protocol):
    """What shows the steps of a pull."""

    def show(self, steps: Sequence[Mapping[str, object]]) -> None:
        """Show how far each part is."""

    def close(self, *, whole: bool) -> None:
        """Leave the screen; ``whole`` tells whether the image is here."""


def pull(args: argparse.Namespace) -> int:
    """Pull images, one after the other."""
    auth = None
    if args.username:
        password = sys.stdin.readline().rstrip("\n") if args.password_stdin else getpass.getpass()
        auth = pb.AuthConfig(
            username=args.username, password=password, server_address=args.server_address
        )
    watched = sys.stderr.isatty() and not (args.quiet or args.json)

    async def work(cri: CriClient) -> list[str]:
        found = []
        for reference in args.references:
            screen = Bars(reference) if watched else None
            found.append(await pull_watched(cri, reference, auth, screen))
        return found

    ids = with_client(args, work)
    emit_json(ids) if args.json else emit("\n".join(ids))
    return 0


async def pull_watched(
    cri: CriClient, reference: str, auth: pb.AuthConfig | None, screen: Screen | None
) -> str:
    """Pull one image and show its steps; a caller that is interrupted ends the pull."""
    pulling = asyncio.create_task(cri.pull_image(reference, auth))
    try:
        while screen is not None and not (await asyncio.wait({pulling}, timeout=_LOOK_S))[0]:
            screen.show(await _steps(cri, reference))
        return await pulling
    finally:
        pulling.cancel()
        if screen is not None:
            screen.close(
                whole=pulling.done() and not pulling.cancelled() and not pulling.exception()
            )


async def _steps(cri: CriClient, reference: str) -> Sequence[Mapping[str, object]]:
    try:
        answer = await cri.image_status(reference, verbose=True)
    except CriError:
        return ()  # the pull itself tells what is wrong
    facts = json.loads(answer.info.get("info", "{}"))
    steps: list[Mapping[str, object]] = facts.get("pull", [])
    return steps


class Bars:
    """One bar for each layer, on stderr."""

    def __init__(self, reference: str) -> None:
        """Begin with the name alone."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TransferSpeedColumn,
        )

        self._progress: Progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            DownloadColumn(),
            TransferSpeedColumn(),
            TextColumn("{task.fields[stage]}", markup=False),
            console=Console(stderr=True),
        )
        self._bars: dict[str, TaskID] = {}
        self._progress.start()
        self._progress.console.print(reference, markup=False, highlight=False)

    def show(self, steps: Sequence[Mapping[str, object]]) -> None:
        """Move the bars; what has no size gets none."""
        for step in steps:
            what, total = str(step["what"]), int(str(step["total_bytes"]))
            if not total or not what.startswith("sha"):
                continue
            if what not in self._bars:
                self._bars[what] = self._progress.add_task(what[:_SHORT], total=total, stage="")
            stage = str(step["stage"])
            # Unpacking has no figures of its own: the bytes are all here by then.
            done = total if stage == "unpacking" else int(str(step["done_bytes"]))
            self._progress.update(self._bars[what], completed=done, stage=stage)

    def close(self, *, whole: bool) -> None:
        """Let the bars stand, full if all is here: the last steps were too quick to be asked for."""
        for task in self._progress.tasks if whole else ():
            self._progress.update(task.id, completed=task.total, stage="done")
        self._progress.stop()


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("references", nargs="+", metavar="IMAGE")
    parser.add_argument("--username", "-u", help="the password is asked for, or read with the next")
    parser.add_argument("--password-stdin", action="store_true", help="read it from stdin")
    parser.add_argument(
        "--server-address",
        default="",
        metavar="HOST",
        help="the one host that may see user and password (default: the image's registry)",
    )
    parser.add_argument("--quiet", "-q", action="store_true", help="no bars")
    json_flag(parser)


COMMAND = Command(
    "pull",
    "bring images into the store",
    _arguments,
    pull,
    "  polypod pull registry.example/app:1\n  polypod pull -u me registry.example/private/app:1\n"
    "  polypod pull oci:/img\n  polypod image explain registry.example/app:1",
)
