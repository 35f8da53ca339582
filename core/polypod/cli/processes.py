"""exec and logs: talk to a running container, read what it wrote."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from polypod.cli.command import Command, Usage, emit_json, find_container, json_flag, with_client
from polypod.cli.logfile import copy_log
from polypod.client import CriClient, pb


def exec_(args: argparse.Namespace) -> int:
    """Run a command in a container and print its output."""
    words = args.cmd[1:] if args.cmd[:1] == ["--"] else args.cmd
    if not words:
        raise Usage("name the program to run: polypod exec ID PROGRAM …")

    async def work(cri: CriClient) -> pb.ExecSyncResponse:
        container_id = await find_container(cri, args.id)
        return await cri.exec_sync(container_id, words, args.timeout)

    answer = with_client(args, work)
    if args.json:
        emit_json(
            {
                "exit_code": answer.exit_code,
                "stdout": answer.stdout.decode(errors="replace"),
                "stderr": answer.stderr.decode(errors="replace"),
            }
        )
    else:
        sys.stdout.buffer.write(answer.stdout)
        sys.stderr.buffer.write(answer.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    return int(answer.exit_code)


def logs(args: argparse.Namespace) -> int:
    """Print a container's log file."""

    async def work(cri: CriClient) -> int:
        container_id = await find_container(cri, args.id)
        status = (await cri.container_status(container_id)).status
        if args.json:
            emit_json({"id": container_id, "log_path": status.log_path})
            return 0
        ended = asyncio.Event()
        copying = asyncio.create_task(
            copy_log(
                Path(status.log_path),
                follow=args.follow,
                ended=ended,
                timestamps=args.timestamps,
                tail=args.tail,
            )
        )
        while args.follow and status.state == pb.CONTAINER_RUNNING and not copying.done():
            await asyncio.sleep(0.2)
            status = (await cri.container_status(container_id)).status
        ended.set()
        await copying
        return 0

    return with_client(args, work)


def _exec_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--timeout", "-t", type=int, default=0, help="seconds; 0 = none")
    json_flag(parser)
    parser.add_argument("id", metavar="ID|NAME")
    parser.add_argument("cmd", nargs=argparse.REMAINDER, metavar="PROGRAM …")


def _logs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--follow", "-f", action="store_true", help="until the container ends")
    parser.add_argument("--timestamps", action="store_true", help="with the time of each line")
    parser.add_argument("--tail", "-n", type=int, help="only the last lines")
    json_flag(parser)
    parser.add_argument("id", metavar="ID|NAME")


COMMANDS = (
    Command(
        "exec",
        "run a command in a running container",
        _exec_arguments,
        exec_,
        "  polypod exec web /bin/ls /\n  polypod exec -t 5 web sh -c 'sleep 9'",
    ),
    Command(
        "logs", "print what a container wrote", _logs_arguments, logs, "  polypod logs -f -n 20 web"
    ),
)
