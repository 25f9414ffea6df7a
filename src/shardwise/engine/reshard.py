"""Asking an engine on a thread of its own for other shares, from an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from shardwise.engine.setup import Setup
from shardwise.errors import ShardwiseError

TellSetup = Callable[[Setup | ShardwiseError], None]
"""Takes the setup that is served from now on, or why the old one is."""


class Resharded(Protocol):
    """An engine whose ranks can be cut anew while it serves."""

    def reshard(self, shares: tuple[float, ...], told: TellSetup) -> None: ...


async def recut_by(engine: Resharded, shares: tuple[float, ...]) -> None:
    """Returns once the engine serves by other shares. Raises what it tells instead."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def put(said: Setup | ShardwiseError) -> None:
        if not done.done():
            if isinstance(said, ShardwiseError):
                done.set_exception(said)
            else:
                done.set_result(None)

    def told(said: Setup | ShardwiseError) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(put, said)

    engine.reshard(shares, told)
    await done
