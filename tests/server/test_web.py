"""One front as it ends: what its clients do, or do not do, cannot hold it up."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from shardwise.errors import ShardwiseError
from shardwise.server.failure import told
from shardwise.server.service import Service
from shardwise.server.settings import Settings
from shardwise.server.web import LEAVE_S, Web
from tests.server.drive import WAIT_S, wait_for
from tests.server.engines import ServingFake

PATIENT = {"body_stall_s": 600.0, "body_timeout_s": 600.0, "write_timeout_s": 600.0, "head_timeout_s": 600.0}
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n"


def half_a_head(client: socket.socket) -> None:
    client.sendall(HEAD[:40])


def half_a_body(client: socket.socket) -> None:
    client.sendall(HEAD + b'{"prompt": ')


def an_answer_that_nobody_reads(client: socket.socket) -> None:
    client.sendall(b"GET /docs HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert client.recv(1, socket.MSG_PEEK)


@contextmanager
def client_of(port: int) -> Iterator[socket.socket]:
    with closing(socket.socket()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.settimeout(WAIT_S)
        client.connect(("127.0.0.1", port))
        yield client


@pytest.mark.parametrize("does", [half_a_head, half_a_body, an_answer_that_nobody_reads])
def test_no_client_holds_up_the_end(engine: ServingFake, does: Callable[[socket.socket], None]) -> None:
    async def main(listener: socket.socket) -> None:
        web = Web(Service(engine, Settings(**PATIENT)), listener)
        await web.start()
        with client_of(listener.getsockname()[1]) as client:
            await asyncio.to_thread(does, client)
            await asyncio.to_thread(wait_for, lambda: web.connections, "the client is connected")
            async with asyncio.timeout(3 * LEAVE_S + WAIT_S):
                await web.drain(0.01)

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        asyncio.run(main(listener))


def test_a_request_that_fails_because_the_server_ends_is_told_so(engine: ServingFake) -> None:
    """It may ask another server; a failure before is this one's."""
    service = Service(engine, Settings(**PATIENT))
    closed = ShardwiseError("the engine was closed")
    assert told(service, closed, "a").status == 500
    service.drain.begin()
    answer = told(service, closed, "a")
    assert (answer.status, answer.code) == (503, "draining") and "retry-after" in answer.headers
    assert told(service, KeyError("a"), "a").status == 500
