"""The story: an image, a pod of two containers that talk, logs, exec, stats, stop, remove."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from demo.server import OwnServer
from demo.steps import Steps
from polypod.client import CriClient, pb

IMAGE = "localhost/demo:latest"
PORT = 8080
TALK_S = 10.0
SIMULATED = {
    "web": ["sh", "-c", "echo serving; sleep inf"],
    "client": ["sh", "-c", "echo hello from a simulated program; sleep inf"],
}
"""Programs of the simulator: they print and sleep, and have no sockets."""


async def tell(server: OwnServer, steps: Steps) -> None:
    """Take every step.

    Raises:
        CriError, RuntimeError: a step failed.
    """
    async with CriClient(server.endpoint) as cri:
        with steps.step(
            "make an image of host programs" if not server.simulated else "pull an image"
        ):
            image = await _image(server, cri)
        await _pod(server, steps, cri, image)


async def _pod(server: OwnServer, steps: Steps, cri: CriClient, image: str) -> None:
    config = _pod_config(server)
    with steps.step("run a pod (RunPodSandbox)"):
        sandbox_id = await cri.run_sandbox(config)
    status = (await cri.sandbox_status(sandbox_id)).status
    steps.say(f"address {status.network.ip}")
    ids = {}
    for name, command in _commands(server, status.network.ip).items():
        with steps.step(f"create and start container {name!r}"):
            ids[name] = await cri.create_container(
                sandbox_id, _container(name, command, image), config
            )
            await cri.start_container(ids[name])
    over = "from 'web', over the pod network" if not server.simulated else "(simulated: no network)"
    with steps.step(f"'client' has an answer in its log {over}"):
        await _talked(cri, ids["client"])
    with steps.step("read it with the command line (polypod logs)"):
        printed = server.run("logs", "client")
    steps.say(printed)
    with steps.step("exec in 'web' (ExecSync)"):
        answer = await cri.exec_sync(ids["web"], _words(server, "id"), 10)
    steps.say(answer.stdout.decode())
    with steps.step("list with the command line (polypod ps)"):
        listed = server.run("ps")
    steps.say(listed)
    with steps.step("stats of both containers"):
        stats = await cri.list_container_stats()
    for each in stats:
        memory_kib = each.memory.working_set_bytes.value / 1024
        steps.say(f"{each.attributes.metadata.name}: memory {memory_kib:.0f} KiB")
    with steps.step("stop the pod"):
        await cri.stop_sandbox(sandbox_id)
    with steps.step("remove the pod"):
        await cri.remove_sandbox(sandbox_id)


async def _image(server: OwnServer, cri: CriClient) -> str:
    if not server.simulated:
        program = shutil.which("busybox") or "busybox"
        server.run("image", "from-host", program, "--name", IMAGE, "--load")
        return IMAGE
    return await cri.pull_image(IMAGE)


def _pod_config(server: OwnServer) -> pb.PodSandboxConfig:
    logs = server.place / "logs"
    logs.mkdir(exist_ok=True)
    return pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name="demo", namespace="default", uid=os.urandom(8).hex()),
        hostname="demo",
        log_directory=str(logs),
        dns_config=pb.DNSConfig(servers=["192.0.2.53"], searches=["demo.example"]),
        linux=pb.LinuxPodSandboxConfig(
            security_context=pb.LinuxSandboxSecurityContext(
                namespace_options=pb.NamespaceOption(pid=pb.CONTAINER)
            )
        ),
    )


def _container(name: str, command: list[str], image: str) -> pb.ContainerConfig:
    security = pb.LinuxContainerSecurityContext(
        namespace_options=pb.NamespaceOption(pid=pb.CONTAINER),
        seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault),
    )
    limits = pb.LinuxContainerResources(memory_limit_in_bytes=64 << 20, cpu_shares=512)
    return pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=name),
        image=pb.ImageSpec(image=image, user_specified_image=image),
        command=command,
        log_path=f"{name}.log",
        linux=pb.LinuxContainerConfig(resources=limits, security_context=security),
    )


def _commands(server: OwnServer, address: str) -> dict[str, list[str]]:
    if server.simulated:
        return SIMULATED
    web = (
        'busybox mkdir /www && busybox echo "hello from $(busybox hostname)" > /www/index.html '
        f"&& exec busybox httpd -f -p {PORT} -h /www"
    )
    ask = f"busybox wget -q -O - http://{address}:{PORT}/"
    client = f"until {ask} 2>/dev/null; do busybox sleep 0.01; done; exec busybox sleep 1000"
    return {"web": _words(server, "sh", "-c", web), "client": _words(server, "sh", "-c", client)}


def _words(server: OwnServer, *words: str) -> list[str]:
    """Return a command of the image: busybox by its host path, or a program of the simulator."""
    return list(words) if server.simulated else [shutil.which("busybox") or "busybox", *words]


async def _talked(cri: CriClient, container_id: str) -> None:
    """Wait until the client has written the answer."""
    path = Path((await cri.container_status(container_id)).status.log_path)
    for _ in range(int(TALK_S / 0.01)):
        if "hello" in await asyncio.to_thread(path.read_text):
            return
        await asyncio.sleep(0.01)
    raise RuntimeError(f"container client: no answer of 'web' in {path} after {TALK_S:g} s")
