"""ps, stop, rm, explain, stats: look at pods and containers, and end them."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from polypod.cli.command import (
    SHORT_ID,
    Command,
    emit,
    emit_json,
    find_any,
    json_flag,
    table,
    with_client,
)
from polypod.client import CriClient, as_dict, pb


def ps(args: argparse.Namespace) -> int:
    """List pods and their containers."""

    async def fetch(cri: CriClient) -> tuple[Any, Any]:
        return await cri.list_sandboxes(), await cri.list_containers()

    pods, containers = with_client(args, fetch)
    if args.json:
        emit_json(
            {"pods": [as_dict(p) for p in pods], "containers": [as_dict(c) for c in containers]}
        )
        return 0
    if args.quiet:
        emit("\n".join(p.id for p in pods))
        return 0
    rows = []
    for pod in pods:
        name = f"{pod.metadata.namespace}/{pod.metadata.name}"
        state = pb.PodSandboxState.Name(pod.state).removeprefix("SANDBOX_").lower()
        rows.append(
            (pod.id[:SHORT_ID], name, state, age(pod.created_at), pod.runtime_handler or "-")
        )
        for item in (c for c in containers if c.pod_sandbox_id == pod.id):
            state = pb.ContainerState.Name(item.state).removeprefix("CONTAINER_").lower()
            image = item.image.user_specified_image or item.image.image
            rows.append(
                (item.id[:SHORT_ID], f"  {item.metadata.name}", state, age(item.created_at), image)
            )
    table(("ID", "NAME", "STATE", "AGE", "HANDLER / IMAGE"), rows)
    return 0


def age(created_at_ns: int) -> str:
    """Return how long ago, in one unit."""
    seconds = max(0, int(time.time() - created_at_ns / 1e9))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def stop(args: argparse.Namespace) -> int:
    """Stop pods or containers."""

    async def work(cri: CriClient) -> None:
        for wanted in args.ids:
            kind, found = await find_any(cri, wanted)
            if kind == "pod":
                await cri.stop_sandbox(found)
            else:
                await cri.stop_container(found, args.timeout)
            emit(found)

    with_client(args, work)
    return 0


def rm(args: argparse.Namespace) -> int:
    """Remove pods or containers."""

    async def work(cri: CriClient) -> None:
        wanted_ids = list(args.ids)
        if args.all:
            wanted_ids += [p.id for p in await cri.list_sandboxes()]
        for wanted in wanted_ids:
            kind, found = await find_any(cri, wanted)
            if kind == "pod":
                await cri.stop_sandbox(found)
                await cri.remove_sandbox(found)
            else:
                await cri.remove_container(found)
            emit(found)

    with_client(args, work)
    return 0


def explain(args: argparse.Namespace) -> int:
    """Show what happened to a pod or container."""

    async def work(cri: CriClient) -> Any:  # noqa: ANN401 - one of two messages
        kind, found = await find_any(cri, args.id)
        if kind == "pod":
            return await cri.sandbox_status(found, verbose=True)
        return await cri.container_status(found, verbose=True)

    answer = with_client(args, work)
    facts = {key: _parsed(value) for key, value in answer.info.items()}
    if args.json:
        emit_json({"status": as_dict(answer.status), "info": facts})
        return 0
    status = as_dict(answer.status)
    for key in ("id", "state", "reason", "exit_code", "message", "log_path", "runtime_handler"):
        if status.get(key) not in {None, ""}:
            emit(f"{key}: {status[key]}")
    for line in _outline(facts.get("info", facts)):
        emit(line)
    return 0


def _parsed(text: str) -> Any:  # noqa: ANN401 - JSON
    try:
        return json.loads(text)
    except ValueError:
        return text


def _outline(value: object, depth: int = 0) -> list[str]:
    """Return nested facts as indented lines."""
    indent = "  " * depth
    lines: list[str] = []
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, (dict, list)) and item:
                lines += [f"{indent}{key}:", *_outline(item, depth + 1)]
            else:
                lines.append(f"{indent}{key}: {item}")
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, (dict, list)):
                lines.append(f"{indent}- {json.dumps(item, default=str)}")
            else:
                lines.append(f"{indent}- {item}")
    else:
        lines.append(f"{indent}{value}")
    return lines


def stats(args: argparse.Namespace) -> int:
    """Show counters of running containers."""
    found = with_client(args, lambda cri: cri.list_container_stats())
    if args.json:
        emit_json([as_dict(item) for item in found])
        return 0
    rows = []
    for item in found:
        cpu = item.cpu.usage_nano_cores
        rate = f"{cpu.value / 1e7:.1f}%" if item.cpu.HasField("usage_nano_cores") else "-"
        memory = item.memory.working_set_bytes.value
        layer = item.writable_layer.used_bytes.value
        name = item.attributes.metadata.name
        rows.append((item.attributes.id[:SHORT_ID], name, rate, size(memory), size(layer)))
    table(("ID", "NAME", "CPU", "MEMORY", "DISK"), rows)
    return 0


def size(count: float) -> str:
    """Return bytes with a unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return ""


def _ps_arguments(parser: argparse.ArgumentParser) -> None:
    json_flag(parser)
    parser.add_argument("--quiet", "-q", action="store_true", help="pod ids only")


def _stop_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="+", metavar="ID|NAME")
    parser.add_argument(
        "--timeout", "-t", type=int, default=10, help="seconds before SIGKILL (default: 10)"
    )


def _rm_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="*", metavar="ID|NAME")
    parser.add_argument("--all", "-a", action="store_true", help="every pod")


def _explain_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID|NAME")
    json_flag(parser)


COMMANDS = (
    Command(
        "ps", "list pods and containers", _ps_arguments, ps, "  polypod ps\n  polypod ps --json"
    ),
    Command("stop", "stop pods or containers", _stop_arguments, stop, "  polypod stop -t 2 web"),
    Command("rm", "stop and remove pods or containers", _rm_arguments, rm, "  polypod rm web"),
    Command(
        "explain",
        "tell what happened to a pod or container, and how long each step took",
        _explain_arguments,
        explain,
        "  polypod explain web",
    ),
    Command(
        "stats",
        "show processor, memory and disk of running containers",
        json_flag,
        stats,
        "  polypod stats\n  polypod stats --json",
    ),
)
