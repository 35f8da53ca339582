"""From a configuration to a heart: every part opened in order, closed in the reverse order."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from polypod.boot.opening import Opener
from polypod.boot.places import Places
from polypod.boot.processes import Processes, open_processes
from polypod.config import Config
from polypod.lifecycle.assemble import Assembler
from polypod.lifecycle.core import Core
from polypod.lifecycle.host_facts import HostFacts
from polypod.lifecycle.parts import Parts, Settings
from polypod.lifecycle.ports import Telemetry
from polypod.plugin.errors import InvalidArgument
from polypod.plugin.runtime import MetricGroup
from polypod.processes.interfaces import PodInterfaces
from polypod.registry import Registry
from polypod.store.database import Database, boot_id
from polypod.streaming.server import Settings as StreamingSettings
from polypod.streaming.server import StreamingServer
from polypod.streaming.server import settings as streaming_settings

FAILPOINTS = "POLYPOD_FAILPOINTS"


@dataclass(frozen=True, slots=True)
class Assembled:
    """A heart that is not yet open, its parts, and what closes them."""

    core: Core
    parts: Parts
    registry: Registry
    processes: Processes
    streaming: StreamingServer
    """To be started once the heart is open, and stopped before it closes."""
    opener: Opener
    """For what the configuration names later."""
    closers: AsyncExitStack
    """Close it last: it disconnects everything. Workloads go on."""


async def assemble(config: Config, places: Places, telemetry: Telemetry | None = None) -> Assembled:
    """Open everything that the configuration names.

    Args:
        config: what is wanted.
        places: the server's directories.
        telemetry: is told how long things take.

    Raises:
        PolypodError: what the server cannot start without is missing; nothing stays open.
    """
    check(config)
    streaming = StreamingServer(_streaming(config))
    closers = AsyncExitStack()
    async with closers:
        registry = Registry.load(
            disabled=config.plugins.disabled,
            required=config.plugins.required,
            order=config.plugins.order,
            hook_timeout_s=config.plugins.hook_timeout_s,
        )
        database = Database(places.root / "records.sqlite", boot_id())
        closers.callback(database.close)
        processes = await open_processes(config, places.state)
        closers.push_async_callback(processes.close)
        cdi = tuple(map(Path, config.server.cdi_dirs))
        builder = Assembler(host=HostFacts.probe(), cdi_directories=cdi)
        closers.callback(builder.close)
        opener = Opener(config, registry, places, processes, closers)
        handlers, unusable = await opener.handlers()
        parts = Parts(
            handlers=handlers,
            default_handler=config.server.default_handler,
            image_store=await opener.default_store(handlers),
            network=await opener.network(),
            supervisor=processes.supervisor,
            logs=processes.logs,
            hooks=registry,
            builder=builder,
            urls=streaming,
            database=database,
            root=places.root,
            state=places.state,
            cgroup_parent=config.server.cgroup_parent,
            state_files=_state_files(config),
            telemetry=telemetry,
            interfaces=PodInterfaces(),
            settings=Settings(metric_groups=_metric_groups(config)),
            failpoints=os.environ.get(FAILPOINTS, ""),
            unusable_handlers=unusable,
        )
        core = Core(parts)
        return Assembled(core, parts, registry, processes, streaming, opener, closers.pop_all())
    raise AssertionError  # the stack swallows nothing


def check(config: Config) -> None:
    """Check what one key alone cannot tell.

    Raises:
        InvalidArgument: naming the key.
    """
    default = config.server.default_handler
    if default not in config.handlers:
        raise InvalidArgument(
            f"server.default_handler is {default!r}; configured are {sorted(config.handlers)}"
        )
    if not config.server.cgroup_parent.startswith("/"):
        raise InvalidArgument(
            f"server.cgroup_parent is {config.server.cgroup_parent!r}: give an absolute path"
        )


def _streaming(config: Config) -> StreamingSettings:
    """Return the streaming server's settings. Raises like `streaming_settings`."""
    wanted = config.streaming
    return streaming_settings(
        wanted.address,
        cert=wanted.cert,
        key=wanted.key,
        client_ca=wanted.client_ca,
        idle_s=wanted.idle_timeout_s,
    )


def _metric_groups(config: Config) -> frozenset[MetricGroup]:
    """Return the groups of pods' metrics. InvalidArgument: one is unknown."""
    known = [str(each) for each in MetricGroup]
    for name in config.metrics.pod_groups:
        if name not in known:
            raise InvalidArgument(
                f"metrics.pod_groups names {name!r}; known are {', '.join(known)}"
            )
    return frozenset(MetricGroup(name) for name in config.metrics.pod_groups)


def _state_files(config: Config) -> Path | None:
    """Return where state files are published.

    The default directory is the host's; a user who may not write there publishes nothing, unless
    the configuration names a directory.
    """
    if not config.server.state_files:
        return None
    if os.geteuid() != 0 and not config.is_set("server.state_files"):
        return None
    return Path(config.server.state_files)
