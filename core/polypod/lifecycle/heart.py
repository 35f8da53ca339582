"""What all parts of the heart share: the parts, the objects, and the one place that commits moves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from polypod.lifecycle.explain import Explain
from polypod.lifecycle.failpoints import Failpoints
from polypod.lifecycle.feed import Feed
from polypod.lifecycle.names import Joins, Names
from polypod.lifecycle.objects import Container, Sandbox, container_view, sandbox_view
from polypod.lifecycle.parts import Handler, Parts
from polypod.lifecycle.prefixes import PrefixIndex
from polypod.lifecycle.records import ContainerRecord, SandboxRecord
from polypod.lifecycle.rollback import Rollback
from polypod.lifecycle.state_files import StateFiles
from polypod.lifecycle.states import (
    ContainerEvent,
    SandboxEvent,
    next_container,
    next_sandbox,
)
from polypod.plugin.errors import FailedPrecondition, NotFound
from polypod.plugin.ids import ContainerId, SandboxId
from polypod.plugin.oci import OciConfig
from polypod.store.records import Records


class Heart:
    """The shared state. Moves go through `move_sandbox` and `move_container` alone."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.clock = parts.clock
        self.settings = parts.settings
        self.failpoints = Failpoints(parts.clock, parts.failpoints)
        self.state_files = StateFiles(parts.state_files)
        self._told = parts.telemetry.stage if parts.telemetry is not None else None
        self.feed = Feed(parts.clock, parts.settings.events_behind)
        self.joins = Joins()
        self.sandboxes: PrefixIndex[Sandbox] = PrefixIndex("sandbox")
        self.containers: PrefixIndex[Container] = PrefixIndex("container")
        self.sandbox_names: Names[SandboxId] = Names()
        self.container_names: Names[ContainerId] = Names()
        self.sandbox_records = Records(parts.database, "sandbox", SandboxRecord)
        self.container_records = Records(parts.database, "container", ContainerRecord)
        self.oci_configs = Records(parts.database, "oci", OciConfig)

    def rollback(self, what: str) -> Rollback:
        """Return an empty undo stack with the usual limits."""
        return Rollback(what, self.clock, deadline_s=self.settings.undo_s)

    # Objects

    def adopt_sandbox(self, record: SandboxRecord) -> Sandbox:
        """Take a record into memory."""
        sandbox = Sandbox(
            record,
            self.parts.handlers.get(record.chosen_handler),
            self.parts.state / "sandboxes" / record.id,
            Explain(self.clock, self._told),
        )
        self.sandboxes.add(record.id, sandbox)
        self.sandbox_names.take(record.config.metadata, record.id)
        return sandbox

    def adopt_container(self, record: ContainerRecord, sandbox: Sandbox) -> Container:
        """Take a record into memory."""
        container = Container(
            record,
            sandbox,
            self.parts.state / "containers" / record.id,
            Explain(self.clock, self._told),
        )
        self.containers.add(record.id, container)
        sandbox.containers[record.id] = container
        self.container_names.take((record.sandbox_id, record.config.metadata), record.id)
        return container

    def handler_of(self, sandbox: Sandbox) -> Handler:
        """Return the opened handler of a sandbox.

        Raises:
            FailedPrecondition: the configuration no longer has it.
        """
        if sandbox.handler is None:
            raise FailedPrecondition(
                f"sandbox {sandbox.record.id} belongs to handler {sandbox.record.chosen_handler!r}, "
                "which is not configured or could not be opened: configure it again, then retry"
            )
        return sandbox.handler

    def handler(self, name: str) -> Handler:
        """Return the handler of a request; ``""`` is the default one.

        Raises:
            NotFound: naming what was asked, and what there is.
        """
        wanted = name or self.parts.default_handler
        found = self.parts.handlers.get(wanted)
        if found is not None:
            return found
        for view in self.parts.unusable_handlers:
            if view.name == wanted:
                raise NotFound(f"runtime handler {wanted!r} cannot be used: {view.unusable}")
        have = ", ".join(sorted(self.parts.handlers)) or "none"
        raise NotFound(f"there is no runtime handler {wanted!r}; configured: {have}")

    # Commits: the record first, then memory, so that nothing is answered that a crash could lose.

    def commit_sandbox(self, sandbox: Sandbox, **changes: Any) -> None:  # noqa: ANN401 - fields of the record
        """Change fields of a record."""
        record = replace(sandbox.record, **changes)
        self.sandbox_records.put(record.id, record)
        sandbox.record = record
        sandbox.view = sandbox_view(record)

    def move_sandbox(self, sandbox: Sandbox, event: SandboxEvent, **changes: Any) -> None:  # noqa: ANN401
        """Make a move and change fields in one commit. TransitionError if there is no such move."""
        before = sandbox.record.state
        self.commit_sandbox(sandbox, state=next_sandbox(before, event), **changes)
        self.feed.moved_sandbox(sandbox, before)

    def commit_container(self, container: Container, **changes: Any) -> None:  # noqa: ANN401
        """Change fields of a record."""
        record = replace(container.record, **changes)
        self.container_records.put(record.id, record)
        container.record = record
        container.view = container_view(record)

    def move_container(self, container: Container, event: ContainerEvent, **changes: Any) -> None:  # noqa: ANN401
        """Make a move, change fields in one commit, and publish the new state."""
        before = container.record.state
        self.commit_container(container, state=next_container(before, event), **changes)
        self.feed.moved_container(container, before)
        self.state_files.publish(container.view, container.directory)

    def forget_sandbox(self, sandbox: Sandbox) -> None:
        """Delete the record, then the object; the name is released last."""
        record = sandbox.record
        self.sandbox_records.delete(record.id)
        self.sandboxes.discard(record.id)
        sandbox.close_namespaces()
        self.sandbox_names.release(record.config.metadata, record.id)
        self.feed.forgot_sandbox(sandbox)

    def forget_container(self, container: Container) -> None:
        """Delete the record, then the object; the name is released last."""
        record = container.record
        self.container_records.delete(record.id)
        self.oci_configs.delete(record.id)
        self.containers.discard(record.id)
        container.sandbox.containers.pop(record.id, None)
        self.state_files.withdraw(record.id)
        self.container_names.release((record.sandbox_id, record.config.metadata), record.id)
        self.feed.forgot_container(container)
