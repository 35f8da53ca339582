"""run: a pod with one container, from one command line."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import sys
import tempfile
from pathlib import Path

from polypod.cli.command import Command, Usage, emit, with_client
from polypod.cli.logfile import copy_log
from polypod.client import CriClient, pb

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def run(args: argparse.Namespace) -> int:
    """Make a pod and a container; wait for it unless detached."""
    name = args.name or f"run-{secrets.token_hex(4)}"
    pod = pod_config(args, name)
    container = container_config(args, name)
    return with_client(args, lambda cri: _run(cri, args, pod, container))


async def _run(
    cri: CriClient,
    args: argparse.Namespace,
    pod: pb.PodSandboxConfig,
    container: pb.ContainerConfig,
) -> int:
    container.image.image = await _image_id(cri, args.image)
    sandbox_id = await cri.run_sandbox(pod, args.handler)
    keep = False
    try:
        container_id = await cri.create_container(sandbox_id, container, pod)
        await cri.start_container(container_id)
        keep = not args.rm
        if args.detach:
            emit(sandbox_id)
            return 0
        return await _follow(cri, container_id)
    finally:
        if not keep:
            await cri.stop_sandbox(sandbox_id)
            await cri.remove_sandbox(sandbox_id)
            for log in Path(pod.log_directory).iterdir():
                log.unlink()
            Path(pod.log_directory).rmdir()


async def _image_id(cri: CriClient, reference: str) -> str:
    """Return the id of an image, pulled if it is not here. Files are always read again."""
    if not reference.startswith(("oci:", "oci-archive:", "docker-archive:")):
        found = await cri.image_status(reference)
        if found.HasField("image"):
            return str(found.image.id)
    return await cri.pull_image(reference)


async def _follow(cri: CriClient, container_id: str) -> int:
    """Copy the log until the container has ended; return its exit code."""
    status = (await cri.container_status(container_id)).status
    ended = asyncio.Event()
    copying = asyncio.create_task(copy_log(Path(status.log_path), follow=True, ended=ended))
    try:
        while status.state in {pb.CONTAINER_CREATED, pb.CONTAINER_RUNNING}:
            await asyncio.sleep(0.05)
            status = (await cri.container_status(container_id)).status
    finally:
        ended.set()
        await copying
    if status.reason not in {"Completed", "Error", ""}:
        sys.stderr.write(f"polypod: {status.reason}: {status.message}\n")
    return int(status.exit_code)


def pod_config(args: argparse.Namespace, name: str) -> pb.PodSandboxConfig:
    """Return the pod of a command line."""
    network = pb.NODE if args.host_network else pb.POD
    options = pb.NamespaceOption(network=network, pid=pb.CONTAINER, ipc=pb.POD)
    context = pb.LinuxSandboxSecurityContext(namespace_options=options, privileged=args.privileged)
    return pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name=name, namespace="default", uid=secrets.token_hex(8)),
        hostname="" if args.host_network else name[:63],
        log_directory=tempfile.mkdtemp(prefix="polypod-run-"),
        linux=pb.LinuxPodSandboxConfig(security_context=context),
    )


def container_config(args: argparse.Namespace, name: str) -> pb.ContainerConfig:
    """Return the container of a command line: words after the image are the command."""
    network = pb.NODE if args.host_network else pb.POD
    options = pb.NamespaceOption(network=network, pid=pb.CONTAINER, ipc=pb.POD)
    context = pb.LinuxContainerSecurityContext(
        namespace_options=options,
        privileged=args.privileged,
        seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault),
    )
    if args.user is not None:
        context.run_as_user.value = args.user
    limits = pb.LinuxContainerResources(memory_limit_in_bytes=args.memory or 0)
    if args.cpu:
        limits.cpu_period, limits.cpu_quota = 100_000, int(args.cpu * 100_000)
    return pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=name),
        image=pb.ImageSpec(image=args.image, user_specified_image=args.image),
        command=args.cmd,
        working_dir=args.workdir,
        envs=[_env(text) for text in args.env],
        mounts=[_mount(text) for text in args.mount],
        log_path=f"{name}.log",
        stdin=args.stdin,
        tty=args.tty,
        linux=pb.LinuxContainerConfig(resources=limits, security_context=context),
    )


def _env(text: str) -> pb.KeyValue:
    key, given, value = text.partition("=")
    if not key:
        raise Usage(f"--env {text!r}: give NAME=VALUE, or NAME to pass on your own")
    return pb.KeyValue(key=key, value=os.fsencode(value if given else os.environ.get(key, "")))


def _mount(text: str) -> pb.Mount:
    parts = text.split(":")
    if len(parts) not in {2, 3} or parts[2:] not in ([], ["ro"], ["rw"]):
        raise Usage(f"--mount {text!r}: give HOST_PATH:CONTAINER_PATH[:ro]")
    host = str(Path(parts[0]).absolute())
    return pb.Mount(host_path=host, container_path=parts[1], readonly=parts[2:] == ["ro"])


def byte_count(text: str) -> int:
    """Return a size such as 64m as bytes."""
    number, unit = (text, "") if text[-1:].isdigit() else (text[:-1], text[-1:].lower())
    if not number.isdigit() or unit not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r}: give bytes, or a number with k, m or g")
    return int(number) * _UNITS[unit]


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", help="name of pod and container (default: a random one)")
    parser.add_argument("--handler", default="", help="runtime handler (default: the server's)")
    parser.add_argument("--detach", "-d", action="store_true", help="print the pod id, do not wait")
    parser.add_argument("--rm", action="store_true", help="remove the pod when the program ends")
    parser.add_argument("--host-network", action="store_true", help="use the host's network")
    parser.add_argument("--privileged", action="store_true", help="without confinement")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--mount", "-v", action="append", default=[], metavar="HOST:PATH[:ro]")
    parser.add_argument("--memory", "-m", type=byte_count, help="limit, such as 64m")
    parser.add_argument("--cpu", type=float, help="limit in processors, such as 0.5")
    parser.add_argument("--user", "-u", type=int, help="numeric user id")
    parser.add_argument("--workdir", "-w", default="", help="working directory")
    parser.add_argument("--stdin", "-i", action="store_true", help="with a stdin to attach to")
    parser.add_argument("--tty", "-t", action="store_true", help="give it a terminal")
    parser.add_argument("image", help="image id, tag, or oci:PATH")
    parser.add_argument("cmd", nargs=argparse.REMAINDER, metavar="CMD …")


COMMANDS = (
    Command(
        "run",
        "run a program of an image in a pod of its own",
        _arguments,
        run,
        "  polypod run --rm localhost/demo:latest /bin/echo hello\n"
        "  polypod run -d --name web -m 64m localhost/demo:latest /bin/httpd -f",
    ),
)
