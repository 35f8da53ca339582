"""URLs of streams that nobody serves: what was asked for can be opened by the test itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polypod.lifecycle.ports import Forward, RemoteCommand


class FakeUrls:
    """Implements `polypod.lifecycle.ports.StreamUrls`."""

    def __init__(self) -> None:
        self.commands: dict[str, RemoteCommand] = {}
        """What an exec's or attach's URL leads to."""
        self.forwards: dict[str, Forward] = {}

    def exec(self, command: RemoteCommand, /) -> str:
        """Return a URL that is a key of `commands`."""
        return self._note("exec", command)

    def attach(self, command: RemoteCommand, /) -> str:
        """Return a URL that is a key of `commands`."""
        return self._note("attach", command)

    def forward(self, forward: Forward, /) -> str:
        """Return a URL that is a key of `forwards`."""
        url = f"http://127.0.0.1/portforward/{len(self.forwards)}"
        self.forwards[url] = forward
        return url

    def _note(self, kind: str, command: RemoteCommand) -> str:
        url = f"http://127.0.0.1/{kind}/{len(self.commands)}"
        self.commands[url] = command
        return url
