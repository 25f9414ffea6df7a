"""Connections that are slow, silent, too many or endless: each limit at work, with good requests served meanwhile."""

from __future__ import annotations

import gc
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest

from shardwise.server.app import QUERY_FIELDS
from shardwise.server.body import NAMES
from shardwise.server.call import Call
from shardwise.server.protocol import Connection
from shardwise.server.reply import Json, Reply
from shardwise.server.route import Route
from shardwise.server.routes import ROUTES
from shardwise.server.send import Exchange
from shardwise.server.service import READERS, Service
from tests.server.demo import DEMO
from tests.server.drive import Served, serving, until_closed, wait_for
from tests.server.engines import ServingFake

POST = b"POST /v1/demo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n"


def trickled(served: Served, start: bytes, piece: bytes, every_s: float) -> bytes:
    """What comes back on a connection that gets a piece every so often, until it is closed."""
    with served.connect() as connection:
        ended = threading.Event()
        connection.sendall(start)

        def feed() -> None:
            while not ended.wait(every_s):
                try:
                    connection.sendall(piece)
                except OSError:
                    return

        thread = threading.Thread(target=feed)
        thread.start()
        try:
            return until_closed(connection)
        finally:
            ended.set()
            thread.join()


SLOW = {
    "headers, a byte at a time": (b"GET /health HTTP/1.1\r\nHost: loc", b"a", 0.05, b"the headers did not end"),
    "headers, a line at a time": (
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n",
        b"X: 1\r\n",
        0.05,
        b"the headers did not end",
    ),
    "a request line that does not end": (b"GET /he", b"", 1.0, b"the headers did not end"),
    "a body that stops": (POST + b"{", b"", 1.0, b"the body did not come in time: 1 bytes"),
    "a body, a byte at a time": (POST, b" ", 0.05, b"the body did not come in time"),
    "chunks, a byte at a time": (
        b"POST /v1/demo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"1\r\n \r\n",
        0.05,
        b"the body did not come in time",
    ),
}


@pytest.mark.parametrize("name", SLOW)
def test_slow_requests_are_told_and_closed(engine: ServingFake, name: str):
    start, piece, every_s, message = SLOW[name]
    with serving(engine, DEMO, head_timeout_s=0.4, body_stall_s=0.3, body_timeout_s=0.6) as served:
        answer = trickled(served, start, piece, every_s)
        assert answer.startswith(b"HTTP/1.1 408 ") and message in answer
        assert served.post("/v1/demo", {"prompt": "Once"}).status == 200
        wait_for(lambda: served.service.drain.count == 0, "none is open", 5)


def test_silent_connections_are_closed(engine: ServingFake):
    with serving(engine, DEMO, head_timeout_s=0.2, idle_timeout_s=0.2) as served:
        with served.connect() as silent:
            assert until_closed(silent) == b""
        with served.connect() as idle:
            idle.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert until_closed(idle).startswith(b"HTTP/1.1 200 ")


def test_many_slow_connections_hold_up_nobody(engine: ServingFake):
    with serving(engine, DEMO, head_timeout_s=1.0) as served:
        slow = [served.connect() for _ in range(100)]
        for connection in slow:
            connection.sendall(b"GET /health HT")
        assert served.post("/v1/demo", {"prompt": "Once"}).status == 200
        assert [until_closed(connection)[:12] for connection in slow] == [b"HTTP/1.1 408"] * 100
        for connection in slow:
            connection.close()


def test_connections_above_the_most_are_told(engine: ServingFake):
    with serving(engine, DEMO, max_connections=3) as served:
        open_ones = [served.connect() for _ in range(3)]
        for connection in open_ones:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        with served.connect() as further:
            answer = until_closed(further)
        assert answer.startswith(b"HTTP/1.1 503 ") and b"retry-after: " in answer
        open_ones.pop().close()
        wait_for(lambda: served.get("/health").status == 200, "there is room again", 10)
        for connection in open_ones:
            connection.close()


def test_a_body_that_is_too_large_is_told_while_it_is_sent(engine: ServingFake):
    """The client sends all of it and only then reads; it gets the answer all the same."""
    with serving(engine, DEMO, max_body_bytes=1000) as served:
        assert served.ask("POST", "/v1/demo", b" " * 5_000_000).status == 413
        assert served.ask("POST", "/v1/demo", b'{"prompt": "%s"}' % (b"x" * (1000 - 14))).status in (200, 400)
        assert served.ask("POST", "/v1/demo", b'{"prompt": "%s"}' % (b"x" * (1001 - 14))).status == 413
        assert engine.running == 0


def test_a_body_without_end_is_cut_off(engine: ServingFake):
    with serving(engine, DEMO, api_keys=("k",)) as served:
        start = b"POST /v1/demo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        began = time.monotonic()
        answer = trickled(served, start, b"1000\r\n" + b" " * 4096 + b"\r\n", 0.01)
        assert answer.startswith(b"HTTP/1.1 401 ") and time.monotonic() - began < 20


def test_extensions_of_chunks_are_bounded(engine: ServingFake):
    with serving(engine, DEMO, max_body_bytes=20_000) as served, served.connect() as connection:
        start = b"POST /v1/demo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(start + (b"1;" + b"x" * 1000 + b"\r\n \r\n") * 1000)
        assert until_closed(connection).startswith(b"HTTP/1.1 413 ")


class Large(msgspec.Struct):
    """Notes where it was made."""

    items: list[Any]
    thread: str = ""

    def __post_init__(self) -> None:
        self.thread = threading.current_thread().name


async def where(_service: Service, _call: Call, body: Large) -> Reply:
    return Json(body.thread)


def test_large_bodies_are_read_beside_the_loop(engine: ServingFake):
    with serving(engine, (Route("POST", ("/where",), where, "Where.", "demo", body=Large),)) as served:
        assert served.post("/where", {"items": [0]}).json == "server"
        large = served.post("/where", {"items": [[0] * 20] * 40_000})
        assert large.status == 200 and large.json.startswith("reader")
        assert served.post("/where", {"items": [["x"] * 10] * 40_000, "thread": 3}).status == 400


def test_parameters_of_an_address_are_counted(engine: ServingFake):
    with serving(engine, DEMO) as served:
        for count, status in ((QUERY_FIELDS, 200), (QUERY_FIELDS + 1, 400)):
            answer = served.get("/v1/named/a?" + "&".join(f"p{n}=%ff" for n in range(count)))
            assert answer.status == status, answer.body
        assert answer.json["error"]["message"] == f"the address has too many parameters; {QUERY_FIELDS} are the most"


def test_forms_are_checked_beside_everything_else(engine: ServingFake):
    """However many wait for that: who wants no form is answered meanwhile."""
    with serving(engine, ROUTES) as served, ThreadPoolExecutor(2 * READERS) as clients:
        asked = {"prompt": "Once", "max_tokens": 2}
        with served.service.front._grammar_check._lock:  # as long as others' are looked at
            forms = [clients.submit(served.post, "/v1/completions", {**asked, "regex": f"a{n}b*"}) for n in range(2 * READERS)]
            wait_for(lambda: served.service.drain.count == 2 * READERS, "all have been read")
            assert served.ask("POST", "/v1/completions", asked).status == 200
            assert not any(form.done() for form in forms)
        assert [form.result().status for form in forms] == [200] * 2 * READERS


def test_fields_without_number_are_counted_up_to_a_number(engine: ServingFake):
    with serving(engine, DEMO) as served:
        many = {f"{n:x}": 1 for n in range(3 * NAMES)}
        assert served.post("/v1/demo", {**many, "prompt": "Once"}).status == 200
        counted = served.service.unknown
        assert sum(counted.values()) == len(many) and len(counted) <= NAMES + 1 and counted["others"] >= 2 * NAMES


def test_a_client_that_asks_to_go_on_is_told_to(engine: ServingFake):
    with serving(engine, DEMO) as served:
        for length, expected in ((18, b"HTTP/1.1 100 Continue\r\n"), (10**9, b"HTTP/1.1 413 ")):
            with served.connect() as connection:
                head = f"POST /v1/demo HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
                connection.sendall(head.encode())
                assert connection.recv(65536).startswith(expected)
                if length == 18:
                    connection.sendall(b'{"prompt": "Once"}')
                    connection.settimeout(20)
                    assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
                connection.shutdown(socket.SHUT_WR)


def test_what_is_refused_leaves_nothing_for_the_collector(engine: ServingFake):
    """A cycle would keep a connection and the request on it until a collection: under overload, thousands of them."""

    def left() -> int:
        return sum(issubclass(type(each), Connection | Exchange) for each in gc.get_objects())

    with serving(engine, ROUTES) as served:
        gc.collect()
        before = left()
        gc.disable()
        try:
            for number in range(3):
                assert served.post("/v1/nothing", {}).status == 404
                assert served.post("/v1/completions", {"prompt": "a", "max_tokens": 0.5}).status == 400
                assert served.post("/v1/completions", {"prompt": "a", "max_tokens": 1, "stream": number == 1}).status == 200
            wait_for(lambda: left() <= before, "all is gone without a collection")
        finally:
            gc.enable()
