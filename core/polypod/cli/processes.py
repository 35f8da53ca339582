"""exec, attach and logs: talk to a running container, read what it wrote."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path

from polypod.cli.command import Command, Usage, emit_json, find_container, json_flag, with_client
from polypod.cli.logfile import copy_log
from polypod.client import CriClient, pb
from polypod.lifecycle.views import StreamChoice


def exec_(args: argparse.Namespace) -> int:
    """Run a command in a container: on streams, or (with a time limit or as JSON) to its end."""
    words = args.cmd[1:] if args.cmd[:1] == ["--"] else args.cmd
    if not words:
        raise Usage("name the program to run: polypod exec ID PROGRAM …")
    if args.timeout or args.json:
        if args.stdin or args.tty:
            raise Usage("--timeout and --json collect output: leave out --stdin and --tty")
        return _exec_sync(args, words)
    from polypod.cli.streams import talk

    choice = StreamChoice(args.stdin, stdout=True, stderr=not args.tty, tty=args.tty)

    async def url(cri: CriClient) -> str:
        container_id = await find_container(cri, args.id)
        return await cri.exec_url(container_id, words, **asdict(choice))

    return with_client(args, lambda cri: talk(cri, url, choice))


def attach(args: argparse.Namespace) -> int:
    """Join the streams of a container; its terminal and stdin are used where it has them."""
    from polypod.cli.streams import talk

    async def joined(cri: CriClient) -> int:
        container_id = await find_container(cri, args.id)
        facts = (await cri.container_status(container_id, verbose=True)).info["info"]
        made = json.loads(facts)["streams"]
        choice = StreamChoice(
            stdin=made["stdin"] and not args.no_stdin,
            stdout=True,
            stderr=not made["tty"],
            tty=made["tty"],
        )

        async def url(cri: CriClient) -> str:
            return await cri.attach_url(container_id, **asdict(choice))

        return await talk(cri, url, choice, may_leave=True)

    return with_client(args, joined)


def _exec_sync(args: argparse.Namespace, words: list[str]) -> int:

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
    parser.add_argument("--stdin", "-i", action="store_true", help="pass our stdin on")
    parser.add_argument("--tty", "-t", action="store_true", help="give it a terminal")
    parser.add_argument("--timeout", type=int, default=0, help="seconds; the exec is killed then")
    json_flag(parser)
    parser.add_argument("id", metavar="ID|NAME")
    parser.add_argument("cmd", nargs=argparse.REMAINDER, metavar="PROGRAM …")


def _attach_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-stdin", action="store_true", help="only look on")
    parser.add_argument("id", metavar="ID|NAME")


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
        "  polypod exec web /bin/ls /\n  polypod exec -it web sh\n"
        "  polypod exec -i web sh -c 'cat > /tmp/file' < file\n"
        "  polypod exec --timeout 5 web sh -c 'sleep 9'",
    ),
    Command(
        "attach",
        "join the streams of a running container",
        _attach_arguments,
        attach,
        "  polypod attach web        a terminal is left with ctrl-p ctrl-q\n"
        "  polypod attach --no-stdin web",
    ),
    Command(
        "logs", "print what a container wrote", _logs_arguments, logs, "  polypod logs -f -n 20 web"
    ),
)
