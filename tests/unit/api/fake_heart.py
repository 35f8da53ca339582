"""A Lifecycle that answers from dictionaries and raises what a test asks for."""

from pathlib import Path

from polypod.lifecycle import views
from polypod.plugin import requests as r
from polypod.plugin.errors import NotFound
from polypod.plugin.images import FilesystemUsage, Image, ImageConfig, PullProgress
from polypod.plugin.runtime import Feature

SANDBOX = views.SandboxView(
    id="a" * 64,
    config=r.SandboxConfig(
        r.PodMetadata("pod", "uid", "ns", 3),
        labels={"l": "ü"},
        annotations={"a": "\u2028 x"},
        security=r.SandboxSecurity(namespaces=r.NamespaceOptions(network=r.NamespaceMode.NODE)),
    ),
    state=views.SandboxState.READY,
    created_at_ns=5,
    handler="",
    chosen_handler="namespaces",
    info={"k": 1},
)
CONTAINER = views.ContainerView(
    id="b" * 64,
    sandbox_id=SANDBOX.id,
    config=r.ContainerConfig(
        r.ContainerMetadata("c", 1),
        r.ImageSpec("img", user_specified_image="wanted"),
        mounts=(r.Mount("/in", "/out", propagation=r.MountPropagation.BIDIRECTIONAL),),
        resources=r.Resources(cpu_shares=7),
    ),
    state=views.ContainerState.EXITED,
    image_id="sha256:1",
    image_ref="x@sha256:2",
    created_at_ns=6,
    finished_at_ns=7,
    exit_code=137,
    reason="OOMKilled",
    log_path=Path("/logs/c.log"),
    stop_signal=10,
    user=(1000, 1001, (5,)),
)
IMAGE = Image("sha256:1", ("t:1",), ("t@sha256:2",), 10, ImageConfig(user="65:7"), "sha256:2")
USAGE = FilesystemUsage(1, Path("/"), 2, 3)


class FakeHeart:
    def __init__(self):
        self.calls = []
        self.error = None
        self.many = 1

    def _note(self, *call):
        self.calls.append(call)
        if self.error is not None:
            raise self.error

    async def run_sandbox(self, config, handler):
        self._note("run_sandbox", config, handler)
        return SANDBOX.id

    async def stop_sandbox(self, sandbox_id):
        self._note("stop_sandbox", sandbox_id)

    async def remove_sandbox(self, sandbox_id):
        self._note("remove_sandbox", sandbox_id)

    async def sandbox_status(self, sandbox_id, *, verbose=False):
        self._note("sandbox_status", sandbox_id)
        if not SANDBOX.id.startswith(sandbox_id):
            raise NotFound(f"no sandbox {sandbox_id}")
        return SANDBOX

    async def list_sandboxes(self, filter_):
        self._note("list_sandboxes", filter_)
        return [SANDBOX] * self.many

    async def create_container(self, sandbox_id, config, sandbox_config):
        self._note("create_container", sandbox_id, config, sandbox_config)
        return CONTAINER.id

    async def start_container(self, container_id):
        self._note("start_container", container_id)

    async def stop_container(self, container_id, timeout_s):
        self._note("stop_container", container_id, timeout_s)

    async def remove_container(self, container_id):
        self._note("remove_container", container_id)

    async def container_status(self, container_id, *, verbose=False):
        self._note("container_status", container_id)
        return CONTAINER

    async def list_containers(self, filter_):
        self._note("list_containers", filter_)
        return [CONTAINER] * self.many

    async def exec_sync(self, container_id, command, timeout_s):
        self._note("exec_sync", container_id, command, timeout_s)
        return views.ExecResult(b"out", b"err", 3)

    async def exec_url(self, container_id, command, choice):
        self._note("exec_url", container_id, command, choice)
        return "http://127.0.0.1:1/exec/t"

    async def attach_url(self, container_id, choice):
        self._note("attach_url", container_id, choice)
        return "http://127.0.0.1:1/attach/t"

    async def forward_url(self, sandbox_id, ports):
        self._note("forward_url", sandbox_id, ports)
        return "http://127.0.0.1:1/portforward/t"

    async def reopen_log(self, container_id):
        self._note("reopen_log", container_id)

    async def container_stats(self, container_id):
        self._note("container_stats", container_id)
        return views.StatsView(CONTAINER, None, None, None)

    async def list_container_stats(self, filter_):
        self._note("list_container_stats", filter_)
        return []

    async def update_runtime_config(self, pod_cidrs):
        self._note("update_runtime_config", pod_cidrs)

    async def status(self, *, verbose=False):
        self._note("status", verbose)
        return views.StatusView(
            (views.Condition("RuntimeReady", True), views.Condition("NetworkReady", True)),
            (
                views.HandlerView("n", "namespaces", True, frozenset({Feature.USER_NAMESPACES})),
                views.HandlerView("vm", "vm", False, frozenset(), unusable="no kvm"),
            ),
            True,
            {"x": 1},
        )

    async def list_images(self, reference):
        self._note("list_images", reference)
        return [IMAGE]

    async def image_status(self, reference):
        self._note("image_status", reference)
        return IMAGE if reference == "t:1" else None

    async def pull_image(self, reference, auth):
        self._note("pull_image", reference, auth)
        return IMAGE

    def pull_progress(self, reference):
        self._note("pull_progress", reference)
        return [PullProgress("layer", "downloading", 1, 2)] if reference == "coming:1" else []

    async def remove_image(self, reference):
        self._note("remove_image", reference)

    async def image_filesystems(self):
        self._note("image_filesystems")
        return USAGE, USAGE
