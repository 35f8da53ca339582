"""Pods and containers for tests: short to make, and all gone when the test ends."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from polypod.client import CriClient, CriError, pb

LIMIT_S = 20.0
"""Until something that must come has come; nothing is measured with it."""
_LINE = re.compile(
    rb"(\d{4}-\d\d-\d\dT[\d:]+\.\d{9}(?:Z|[+-]\d\d:\d\d)) (stdout|stderr) ([PF]) (.*)"
)
T = TypeVar("T")

CONTAINER_PID = pb.NamespaceOption(pid=pb.CONTAINER)
"""What the kubelet asks for unless a pod shares its processes."""


async def eventually(question: Callable[[], Awaitable[T]], what: str) -> T:
    """Ask until the answer is true, and return it."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + LIMIT_S
    while True:
        answer = await question()
        if answer:
            return answer
        assert loop.time() < deadline, f"not within {LIMIT_S:g} s: {what}"
        await asyncio.sleep(0.02)


@dataclass(frozen=True)
class Line:
    """One line of a CRI log."""

    time: str
    stream: str
    tag: str
    text: bytes


def read_log(path: str | Path) -> list[Line]:
    """Return the lines of a log; one that is no CRI log line fails the test."""
    found = []
    for raw in Path(path).read_bytes().splitlines():
        match = _LINE.fullmatch(raw)
        assert match is not None, f"no line of a CRI log: {raw[:200]!r}"
        found.append(Line(match[1].decode(), match[2].decode(), match[3].decode(), match[4]))
    return found


def log_text(path: str | Path, stream: str = "stdout") -> str:
    """Return what one stream of a log says, its partial lines joined."""
    parts = [
        each.text + (b"\n" if each.tag == "F" else b"")
        for each in read_log(path)
        if each.stream == stream
    ]
    return b"".join(parts).decode()


class Pods:
    """Makes pods on one server, and removes them."""

    def __init__(self, cri: CriClient, image: str, logs: Path) -> None:
        self.cri = cri
        self.image = image
        self.logs = logs

    def config(self, name: str = "pod", *, uid: str = "", **fields: Any) -> pb.PodSandboxConfig:
        """Return a config as the kubelet makes them; ``fields`` replace whole fields."""
        uid = uid or secrets.token_hex(8)
        security = fields.pop("security", None) or pb.LinuxSandboxSecurityContext(
            namespace_options=CONTAINER_PID
        )
        linux = fields.pop("linux", None) or pb.LinuxPodSandboxConfig(
            security_context=security,
            sysctls=fields.pop("sysctls", {}),
            cgroup_parent=fields.pop("cgroup_parent", ""),
        )
        values: dict[str, Any] = {
            "metadata": pb.PodSandboxMetadata(
                name=name, uid=uid, namespace="conformance", attempt=fields.pop("attempt", 0)
            ),
            "hostname": name,
            "log_directory": str(self.logs / f"{name}-{uid}"),
            "linux": linux,
        }
        return pb.PodSandboxConfig(**{**values, **fields})

    async def run(self, name: str = "pod", *, handler: str = "", **fields: Any) -> Pod:
        """Run a pod."""
        config = self.config(name, **fields)
        return Pod(self, await self.cri.run_sandbox(config, handler), config)

    async def remove_all(self) -> None:
        """Stop and remove every sandbox of the server."""
        for sandbox in await self.cri.list_sandboxes():
            await self.cri.stop_sandbox(sandbox.id)
            await self.cri.remove_sandbox(sandbox.id)


class Pod:
    """A running pod."""

    def __init__(self, pods: Pods, sandbox_id: str, config: pb.PodSandboxConfig) -> None:
        self.id = sandbox_id
        self.config = config
        self._pods = pods
        self._cri = pods.cri

    async def status(self) -> pb.PodSandboxStatus:
        """PodSandboxStatus."""
        return (await self._cri.sandbox_status(self.id)).status

    def container_config(
        self, command: Sequence[str] | str = (), *, name: str = "box", **fields: Any
    ) -> pb.ContainerConfig:
        """Return a config; a command that is one string is a script for ``sh``."""
        words = ["sh", "-c", command] if isinstance(command, str) else list(command)
        attempt = fields.pop("attempt", 0)
        options = self.config.linux.security_context.namespace_options
        security = fields.pop("security", None) or pb.LinuxContainerSecurityContext()
        if not security.HasField("namespace_options"):
            security.namespace_options.CopyFrom(options)
        linux = pb.LinuxContainerConfig(
            resources=fields.pop("resources", None), security_context=security
        )
        values: dict[str, Any] = {
            "metadata": pb.ContainerMetadata(name=name, attempt=attempt),
            "image": pb.ImageSpec(image=self._pods.image),
            "command": words,
            "log_path": f"{name}/{attempt}.log",
            "linux": linux,
        }
        return pb.ContainerConfig(**{**values, **fields})

    async def create(self, command: Sequence[str] | str = "sleep 1000", **fields: Any) -> str:
        """Create a container, return its id."""
        config = self.container_config(command, **fields)
        return await self._cri.create_container(self.id, config, self.config)

    async def start(self, command: Sequence[str] | str = "sleep 1000", **fields: Any) -> str:
        """Create and start a container, return its id."""
        container_id = await self.create(command, **fields)
        await self._cri.start_container(container_id)
        return container_id

    async def run(self, command: Sequence[str] | str, **fields: Any) -> Ended:
        """Run a container to its end."""
        container_id = await self.start(command, **fields)
        return await self.ended(container_id)

    async def ended(self, container_id: str) -> Ended:
        """Wait for a container's end."""

        async def exited() -> pb.ContainerStatus | None:
            status = (await self._cri.container_status(container_id)).status
            return status if status.state == pb.CONTAINER_EXITED else None

        status = await eventually(exited, f"the end of container {container_id}")
        assert status is not None
        return Ended(status)

    async def said(self, container_id: str, word: str) -> None:
        """Wait until a word stands in a container's log."""
        path = Path((await self._cri.container_status(container_id)).status.log_path)

        async def there() -> bool:
            return path.exists() and word in log_text(path)

        await eventually(there, f"{word!r} in {path}")

    async def sh(self, container_id: str, script: str) -> str:
        """Run a script by ExecSync, return its output; a non-zero exit fails the test."""
        answer = await self._cri.exec_sync(container_id, ["sh", "-c", script], 60)
        assert answer.exit_code == 0, f"{script}: {answer.exit_code}: {answer.stderr!r}"
        return answer.stdout.decode()

    async def info(self, container_id: str) -> dict[str, Any]:
        """Return the verbose facts of a container."""
        answer = await self._cri.container_status(container_id, verbose=True)
        facts: dict[str, Any] = json.loads(answer.info["info"])
        return facts


@dataclass(frozen=True)
class Ended:
    """A container that has exited."""

    status: pb.ContainerStatus

    @property
    def code(self) -> int:
        """Its exit code."""
        return self.status.exit_code

    @property
    def out(self) -> str:
        """What it wrote to stdout."""
        return log_text(self.status.log_path)

    @property
    def err(self) -> str:
        """What it wrote to stderr."""
        return log_text(self.status.log_path, "stderr")


class Refusal:
    """``with refused("NOT_FOUND", "word") as error``: the block must be refused just so."""

    def __init__(self, code: str, *words: str) -> None:
        self._code = code
        self._words = words
        self.text = ""

    def __enter__(self) -> Refusal:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> bool:
        assert error is not None, f"it was not refused; {self._code} was expected"
        if not isinstance(error, CriError):
            return False
        assert error.code.name == self._code, f"{error.code.name}, expected {self._code}: {error}"
        for word in self._words:
            assert word.lower() in error.text.lower(), f"{word!r} is not in {error.text!r}"
        self.text = error.text
        return True


def refused(code: str, *words: str) -> Refusal:
    """Expect a `CriError` with this code and these words in its message."""
    return Refusal(code, *words)
