"""What no client should send: each gets its status, or a closed connection, and the server goes on as if nothing had been."""

from __future__ import annotations

import json
import random
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest

from tests.server.demo import DEMO
from tests.server.drive import Answer, Served, serving, until_closed
from tests.server.engines import ServingFake

HOST = b"Host: localhost\r\n"
BODY = b'{"prompt": "Once"}'
JSON = b"Content-Type: application/json\r\n"


def post(head: bytes = JSON, body: bytes = BODY, path: bytes = b"/v1/demo", length: bool = True) -> bytes:
    """A POST with these headers beside Host and Content-Length."""
    counted = b"Content-Length: %d\r\n" % len(body) if length else b""
    return b"POST " + path + b" HTTP/1.1\r\n" + HOST + head + counted + b"\r\n" + body


def get(path: bytes = b"/health", head: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
    return b"GET " + path + b" " + version + b"\r\n" + HOST + head + b"\r\n"


def chunked(body: bytes, head: bytes = b"Transfer-Encoding: chunked\r\n") -> bytes:
    return post(JSON + head, body, length=False)


GOOD_CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)

REQUESTS: dict[str, tuple[bytes, int]] = {
    # good ones, as a control
    "get": (get(), 200),
    "post": (post(), 200),
    "chunks": (chunked(GOOD_CHUNKS), 200),
    "chunk of one byte each": (chunked(b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"), 200),
    "HTTP/1.0": (get(version=b"HTTP/1.0"), 200),
    "no content type": (post(b""), 200),
    "a charset": (post(b"Content-Type: application/json; charset=UTF-8\r\n"), 200),
    "identity": (post(JSON + b"Content-Encoding: identity\r\n"), 200),
    "h2c offered": (get(head=b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"), 200),
    "websocket offered": (get(head=b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"), 200),
    # request lines
    "no HTTP": (b"hello\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), 400),
    "zeroes": (bytes(100), 400),
    "no version": (b"GET /health\r\n" + HOST + b"\r\n", 505),
    "HTTP/0.9": (get(version=b"HTTP/0.9"), 505),
    "HTTP/2.0": (get(version=b"HTTP/2.0"), 505),
    "HTTP/3.7": (get(version=b"HTTP/3.7"), 400),
    "an unknown method": (get().replace(b"GET", b"FROB"), 400),
    "a method in small letters": (get().replace(b"GET", b"get"), 400),
    "PRI of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "TRACE": (get().replace(b"GET", b"TRACE"), 405),
    "PUT": (get().replace(b"GET", b"PUT"), 405),
    "CONNECT": (b"CONNECT localhost:80 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "an absolute target": (get(b"http://localhost/health"), 400),
    "an absolute target elsewhere": (get(b"http://evil.example/health"), 400),
    "a target without a slash": (get(b"health"), 400),
    "a space in the path": (get(b"/health /x"), 400),
    "a tab in the path": (get(b"/hea\tlth"), 400),
    "bytes in the path": (get(b"/hea\xfflth"), 400),
    "a NUL in the path": (get(b"/health%00"), 404),
    "dots": (get(b"/v1/../health"), 404),
    "dots, escaped": (get(b"/v1/%2e%2e/health"), 404),
    "a slash, escaped": (get(b"%2fhealth"), 400),
    "a bad escape": (get(b"/health%zz"), 404),
    "a path twice escaped": (get(b"/%2568ealth"), 404),
    "a long path": (get(b"/" + b"x" * 9000), 414),
    "a path that is just not too long": (get(b"/" + b"x" * 8000), 404),
    # headers
    "no Host": (b"GET /health HTTP/1.1\r\n\r\n", 400),
    "two Hosts": (get(head=HOST), 400),
    "another Host": (get().replace(b"localhost", b"evil.example"), 403),
    "a Host with a path": (get().replace(b"localhost", b"localhost/x"), 400),
    "a header without a colon": (get(head=b"Frob\r\n"), 400),
    "a space before the colon": (get(head=b"Frob : 1\r\n"), 400),
    "a header name with a space": (get(head=b"Fr ob: 1\r\n"), 400),
    "a header without a name": (get(head=b": 1\r\n"), 400),
    "a NUL in a header": (get(head=b"Frob: a\x00b\r\n"), 400),
    "a lone CR in a header": (get(head=b"Frob: a\rb: c\r\n"), 400),
    "a folded header": (get(head=b"Frob: a\r\n b\r\n"), 400),
    "lines that end in LF": (get().replace(b"\r\n", b"\n"), 400),
    "too many headers": (get(head=b"".join(b"X-%d: 1\r\n" % n for n in range(100))), 431),
    "as many headers as may be": (get(head=b"".join(b"X-%d: 1\r\n" % n for n in range(99))), 200),
    "a large header": (get(head=b"X: " + b"x" * 33_000 + b"\r\n"), 431),
    "large headers": (get(head=b"".join(b"X-%d: %s\r\n" % (n, b"x" * 1000) for n in range(40))), 431),
    "an endless header": (get(head=b"X: " + b"x" * 60_000)[:-4], 431),
    "an endless path": (b"GET /" + b"x" * 60_000, 414),
    # lengths and chunks
    "a negative length": (post(JSON + b"Content-Length: -1\r\n", length=False), 400),
    "a length in words": (post(JSON + b"Content-Length: x\r\n", length=False), 400),
    "a length with a sign": (post(JSON + b"Content-Length: +18\r\n", length=False), 400),
    "a list of lengths": (post(JSON + b"Content-Length: 18, 18\r\n", length=False), 400),
    "a huge length": (post(JSON + b"Content-Length: 99999999999999999999999\r\n", length=False), 400),
    "a length above the limit": (post(JSON + b"Content-Length: 4194305\r\n", length=False), 413),
    "two lengths": (post(JSON + b"Content-Length: 18\r\n"), 400),
    "two different lengths": (post(JSON + b"Content-Length: 5\r\n"), 400),
    "length and chunks": (chunked(GOOD_CHUNKS, b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n"), 400),
    "chunks and length": (chunked(GOOD_CHUNKS, b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n"), 400),
    "an unknown coding": (chunked(GOOD_CHUNKS, b"Transfer-Encoding: frob\r\n"), 400),
    "a coding with a tab": (chunked(GOOD_CHUNKS, b"Transfer-Encoding:\x0bchunked\r\n"), 400),
    "chunked is not last": (chunked(GOOD_CHUNKS, b"Transfer-Encoding: chunked, gzip\r\n"), 400),
    "chunked twice": (chunked(GOOD_CHUNKS, b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"), 400),
    "a chunk size that is none": (chunked(b"zz\r\n{}\r\n0\r\n\r\n"), 400),
    "a negative chunk": (chunked(b"-2\r\n{}\r\n0\r\n\r\n"), 400),
    "a chunk size with 0x": (chunked(b"0x2\r\n{}\r\n0\r\n\r\n"), 400),
    "a huge chunk size": (chunked(b"fffffffffffffffff\r\n{}\r\n0\r\n\r\n"), 400),
    "a chunk that is longer": (chunked(b"2\r\n{}}\r\n0\r\n\r\n"), 400),
    "a chunk that ends in LF": (chunked(b"2\n{}\n0\n\n"), 400),
    "a trailer": (chunked(GOOD_CHUNKS[:-2] + b"Authorization: Bearer x\r\n\r\n"), 400),
    "a chunk above the limit": (chunked(b"400001\r\n" + b" " * 0x400001 + b"\r\n0\r\n\r\n"), 413),
    # bodies
    "an empty body": (post(body=b""), 400),
    "no JSON": (post(body=b"prompt=Once"), 400),
    "a form": (post(b"Content-Type: application/x-www-form-urlencoded\r\n", b"prompt=Once"), 415),
    "plain text": (post(b"Content-Type: text/plain\r\n"), 415),
    "multipart": (post(b"Content-Type: multipart/form-data; boundary=x\r\n"), 415),
    "a charset that is none": (post(b"Content-Type: application/json; charset=utf-16\r\n"), 415),
    "gzip": (post(JSON + b"Content-Encoding: gzip\r\n", b"\x1f\x8b" + bytes(50)), 415),
    "br": (post(JSON + b"Content-Encoding: br\r\n"), 415),
    "NaN": (post(body=b'{"prompt": "a", "temperature": NaN}'), 400),
    "a depth bomb": (post(body=b'{"a":' * 50_000), 400),
    "a half character": (post(body=b'{"prompt": "\\ud83d"}'), 400),
    "a wrong type": (post(body=b'{"prompt": {}}'), 400),
    "a page's script": (post(JSON + b"Origin: https://evil.example\r\n"), 403),
    "a preflight": (
        get(head=b"Origin: https://evil.example\r\nAccess-Control-Request-Method: POST\r\n").replace(b"GET", b"OPTIONS"),
        403,
    ),
}


@pytest.fixture(scope="module")
def server(setup: object) -> Iterator[Served]:
    with ServingFake(setup) as engine, serving(engine, DEMO) as served:  # type: ignore[arg-type]
        yield served


@pytest.mark.parametrize("name", REQUESTS)
def test_each_gets_its_status(server: Served, name: str):
    data, expected = REQUESTS[name]
    with server.connect() as connection:
        with suppress(OSError):  # answered and closed before all of it was sent
            connection.sendall(data)
        answer = one_answer(connection)
        with suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        answer += until_closed(connection)
    assert answer.startswith(b"HTTP/1.1 %d " % expected), answer[:300]
    head, _, body = answer.partition(b"\r\n\r\n")
    assert len(re.findall(rb"HTTP/1.1 \d{3} ", answer)) == 1 and b"\r\nx-request-id: " in head
    if expected >= 400 and body:
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    assert not re.search(rb"0x[0-9a-f]{8,}|site-packages|Traceback|\.py\b", answer)
    assert server.service.drain.count == 0 and server.get("/health").status == 200


def test_there_are_many():
    assert len(REQUESTS) >= 60


def test_a_request_behind_another_is_not_answered_for_it(server: Served):
    """Two at once: the first is answered, the second neither mixed into it nor taken for a new one of somebody else's."""
    for second in (get(b"/version"), b"frob\r\n\r\n", get(head=b"X: " + b"x" * 40_000)):
        with server.connect() as connection:
            connection.sendall(post() + second)
            answer = until_closed(connection)
        assert answer.startswith(b"HTTP/1.1 200 ") and answer.count(b"HTTP/1.1 ") == 1 and b"connection: close" in answer


def test_a_connection_serves_one_request_after_another(server: Served):
    with server.connect() as connection:
        for data in (post(), get(), chunked(GOOD_CHUNKS), get(b"/nope"), post(body=b"{"), post()):
            connection.sendall(data)
            assert one_answer(connection).startswith(b"HTTP/1.1 ")


def one_answer(connection: socket.socket) -> bytes:
    """The next whole answer with a Content-Length."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += received(connection, 1, data)
    match = re.search(rb"content-length: (\d+)", data)
    assert match is not None, data
    while len(data.partition(b"\r\n\r\n")[2]) < int(match[1]):
        data += received(connection, 65536, data)
    return data


def received(connection: socket.socket, most: int, before: bytes) -> bytes:
    part = connection.recv(most)
    assert part, f"closed after {before!r}"
    return part


FULL = {
    "prompt": "Once upon a time",
    "max_tokens": 3,
    "temperature": 0.5,
    "stream": False,
    "items": [{"role": "user", "content": "a"}, {"role": "system"}],
    "extra": {"a": [1, 2.5, None, True]},
    "seed": 7,
}
PIECES = [
    b"",
    b'"',
    b"{",
    b"[",
    b"}",
    b"]",
    b",",
    b":",
    b"\\",
    b"\\ud800",
    b"\x00",
    b"\xff",
    b"NaN",
    b"1e400",
    b"-",
    b"null",
    b"true",
]
PIECES += [
    b"9" * 30,
    b"[" * 200,
    b'{"a":' * 200,
    b'"stream": true,',
    b"\xef\xbb\xbf",
    b"\r\n\r\n",
    b"1.5",
    b"-0",
    b'"prompt": 1,',
]


def mutated(random_source: random.Random) -> bytes:
    data = json.dumps(FULL).encode()
    for _ in range(random_source.randint(1, 3)):
        at = random_source.randrange(len(data))
        data = data[:at] + random_source.choice(PIECES) + data[at + random_source.choice((0, 0, 1, 5)) :]
    return data


def test_mutated_bodies_while_a_good_stream_runs(setup: object):
    """No 5xx, and the stream is what it would have been."""

    def slowly(prompt: Sequence[int], _choice: int, place: int) -> int:
        time.sleep(0.003)
        return (sum(prompt) + 7 * place) % 500

    with ServingFake(setup, slowly) as engine, serving(engine, DEMO) as served:  # type: ignore[arg-type]
        good = {"prompt": "Once", "max_tokens": 250, "stream": True}
        streams: list[Answer] = []
        reader = threading.Thread(target=lambda: streams.append(served.post("/v1/demo", good)))
        reader.start()
        source, statuses = random.Random(7), [served.post("/v1/demo", mutated(random.Random(1))).status]
        while reader.is_alive() or len(statuses) < 200:
            statuses.append(served.post("/v1/demo", mutated(source)).status)
        assert set(statuses) <= {200, 400} and statuses.count(400) > 100, statuses
        ids = [token for event in streams[0].events if event != "[DONE]" for token in event["ids"]]
        alone = served.post("/v1/demo", {**good, "stream": False}).json["ids"]
        assert streams[0].status == 200 and ids == alone and len(ids) == 250 and streams[0].events[-1] == "[DONE]"
        assert engine.running == 0 and served.service.drain.count == 0
