"""What the configuration asks for, as one object that tells all of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import polypod
from polypod.lifecycle.views import Census
from polypod.telemetry.endpoint import MetricsEndpoint
from polypod.telemetry.meter import CONTENT_TYPE, Meter
from polypod.telemetry.tracing import Tracing

Watcher = Meter | Tracing


class Watchers:
    """Tells several. Implements `Telemetry` and `CallWatch`."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self._watchers = watchers

    def began(self, method: str, object_id: str, metadata: Sequence[tuple[str, str]], /) -> object:
        """Tell all that a call begins."""
        return [each.began(method, object_id, metadata) for each in self._watchers]

    def ended(self, began: object, method: str, code: str, seconds: float, /) -> None:
        """Tell all that it has ended."""
        tokens = began if isinstance(began, list) else []
        for each, token in zip(self._watchers, tokens, strict=True):
            each.ended(token, method, code, seconds)

    def stage(self, name: str, seconds: float, error: str, /) -> None:
        """Tell all of a stage."""
        for each in self._watchers:
            each.stage(name, seconds, error)

    def pulled(self, received: int, seconds: float, error: str, /) -> None:
        """Tell all of a pull."""
        for each in self._watchers:
            each.pulled(received, seconds, error)


class TelemetrySet:
    """The watchers of a server and the endpoint, as far as they are configured."""

    def __init__(self, listen: str, *, traces: bool) -> None:
        """Make them; `start` listens.

        Args:
            listen: where Prometheus reads; empty = nowhere.
            traces: whether spans are sent.

        Raises:
            InvalidArgument: ``listen`` is no address.
            FailedPrecondition: traces are wanted and cannot be had.
        """
        self.meter = Meter(polypod.__version__) if listen else None
        self._tracing = Tracing(polypod.__version__) if traces else None
        found: list[Watcher] = [each for each in (self.meter, self._tracing) if each is not None]
        self.watch = Watchers(found) if found else None
        """None: nobody wants to know, and nothing is measured."""
        self.endpoint = (
            MetricsEndpoint(listen, self.meter.text, CONTENT_TYPE) if self.meter else None
        )

    async def start(
        self, census: Callable[[], Census], restarts: Callable[[], Mapping[str, int]]
    ) -> None:
        """Listen, if there is something to listen for. FailedPrecondition: the address is taken.

        Args:
            census: asked at each reading for what there is.
            restarts: asked at each reading for how often our processes went away.
        """
        if self.meter is not None and self.endpoint is not None:
            self.meter.count(census, restarts)
            await self.endpoint.start()

    async def stop(self) -> None:
        """Close the endpoint and send the last spans. Idempotent."""
        if self.endpoint is not None:
            await self.endpoint.stop()
        if self._tracing is not None:
            self._tracing.close()
