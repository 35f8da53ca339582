"""Tasks that are ended together."""

from __future__ import annotations

import asyncio
from typing import Any


async def settle(*tasks: asyncio.Future[Any]) -> None:
    """Cancel what still runs and wait until it has ended; results and errors are dropped."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
