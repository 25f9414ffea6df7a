"""One front that speaks HTTP on a socket that listens already: started, drained, ended. Knows no signals and no processes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import uvicorn

from shardwise.server.app import make_app
from shardwise.server.protocol import Connection, uvicorn_config
from shardwise.server.routes import ROUTES
from shardwise.server.service import Service

LEAVE_S = 1.0
"""How long open requests may take to end once nothing more comes of the engine, and then clients to read the last bytes."""


class _Quiet(uvicorn.Server):
    """uvicorn's server without its ideas about signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Web:
    """A front that answers as soon as `start` has returned. Its loop is the service's."""

    def __init__(self, service: Service, listener: socket.socket) -> None:
        self.service = service
        self._listener = listener
        self._server = _Quiet(uvicorn_config(make_app(service, ROUTES), service.settings))
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns once connections are accepted."""
        self._task = asyncio.create_task(self._server.serve([self._listener]))
        while not self._server.started and not self._task.done():
            await asyncio.sleep(0.001)
        if self._task.done():
            self._task.result()

    async def drain(self, within_s: float) -> None:
        """Refuses new requests, lets open ones finish for so long, then aborts those that are left, and closes."""
        drain = self.service.drain
        drain.begin()
        try:
            async with asyncio.timeout(within_s):
                await drain.idle()
        except TimeoutError:
            self.service.engine.close()
        await self.end()

    async def end(self) -> None:
        """Closes as soon as what was said has been read, or soon."""
        try:
            async with asyncio.timeout(LEAVE_S):
                await self.service.drain.idle()
        except TimeoutError:
            pass
        self._server.should_exit = True
        if self._task is not None:
            await asyncio.wait([self._task], timeout=LEAVE_S)
            # uvicorn waits for clients that send half a request, or read nothing, as long as they like.
            for connection in self.connections:
                connection.transport.abort()
            await self._task
        self.service.close()

    @property
    def connections(self) -> tuple[Connection, ...]:
        """Those that are open."""
        return tuple(cast(set[Connection], self._server.server_state.connections))
