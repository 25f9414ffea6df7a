"""A whole server for tests: the app on a fake engine, under uvicorn with the server's own protocol, on a free port.

`serving(engine, routes, **settings)` gives a `Served`: ask it with `ask`, or open a raw connection with `connect`.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from shardwise.engine.contract import ServingEngine
from shardwise.server.app import App, make_app
from shardwise.server.protocol import uvicorn_config
from shardwise.server.route import Route
from shardwise.server.service import Service
from shardwise.server.settings import Settings

WAIT_S = 30.0
"""Longer than anything here takes, also on a machine with much else to do."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; `json` reads its body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of each frame of a stream: JSON, or the word [DONE]."""
        lines = (line[6:] for line in self.body.decode().splitlines() if line.startswith("data: "))
        return [line if line == "[DONE]" else json.loads(line) for line in lines]


@dataclass(frozen=True, slots=True)
class Served:
    """A server that runs. `loop` is its event loop, on a thread of its own."""

    app: App
    port: int
    loop: asyncio.AbstractEventLoop

    @property
    def service(self) -> Service:
        return self.app.service

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, timeout_s: float = WAIT_S
    ) -> Answer:
        """One request on a connection of its own. `body`: bytes as they are, anything else as JSON."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        given = {"content-type": "application/json"} if data is not None else {}
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)) as connection:
            connection.request(method, path, data, {**given, **(headers or {})})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        return self.ask("POST", path, body, headers)

    def connect(self, timeout_s: float = WAIT_S) -> socket.socket:
        """A raw connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s)

    def call(self, work: Callable[[], Any]) -> Any:
        """Does something on the server's loop, where its state may be touched; awaits it if it is a coroutine."""

        async def there() -> Any:
            done = work()
            return await done if asyncio.iscoroutine(done) else done

        return asyncio.run_coroutine_threadsafe(there(), self.loop).result(WAIT_S)


@contextmanager
def serving(engine: ServingEngine, routes: Sequence[Route], **settings: Any) -> Iterator[Served]:
    """A server over `engine` on a free port of 127.0.0.1; `settings` are those of `Settings`. The engine is the caller's to
    close."""
    given = Settings(**{"port": 0, **settings})
    loops: list[asyncio.AbstractEventLoop] = []
    service = Service(engine, given)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
        app = make_app(service, routes)
        server = uvicorn.Server(uvicorn_config(app, given))

        async def run() -> None:
            loops.append(asyncio.get_running_loop())
            await server.serve(sockets=[listener])

        thread = threading.Thread(target=lambda: uvicorn_run(run, server), name="server", daemon=True)
        thread.start()
        wait_for(lambda: server.started or not thread.is_alive(), "the server starts")
        assert thread.is_alive(), "the server did not start"
        try:
            yield Served(app, port, loops[0])
        finally:
            server.should_exit = server.force_exit = True
            thread.join(WAIT_S)
            service.close()
            assert not thread.is_alive(), "the server did not end"


def uvicorn_run(run: Callable[[], Any], server: uvicorn.Server) -> None:
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(run())


def wait_for(holds: Callable[[], object], what: str, timeout_s: float = WAIT_S) -> None:
    """Returns once it holds; AssertionError, which says `what`, if it never does."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"within {timeout_s} s: {what}"
        time.sleep(0.005)


def until_closed(connection: socket.socket) -> bytes:
    """All that comes until the other side closes, or resets."""
    parts = []
    while True:
        try:
            part = connection.recv(65536)
        except ConnectionResetError:
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts)
