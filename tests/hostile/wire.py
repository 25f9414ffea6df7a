"""Requests as bytes on a connection: good heads around spoilt bodies, and heads, lengths and chunks that are spoilt themselves.

`case(seed, number)` is the same for the same two numbers, whatever ran before.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tests.hostile.bodies import GOOD, body, spoilt, written

HOST = b"Host: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"
MARK = b"/smuggled"
"""A path that stands in no request of its own: an answer that names it shows that what was within another was taken for one."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is sent, in parts, with `pause_s` between them; then the answers are read, `most` at most.

    `leaves`: the client closes without reading any. `late`: its request may never end, so that the server has to give up on
    it; all that comes until the connection closes is read. `forbidden` must not stand in any answer.
    """

    kind: str
    parts: tuple[bytes, ...]
    pause_s: float = 0.0
    most: int = 1
    leaves: bool = False
    late: bool = False
    forbidden: bytes = b""


def post(path: bytes, data: bytes, head: bytes = JSON, lines: bytes = b"") -> bytes:
    """A POST; `lines` in place of its length."""
    return b"POST %s HTTP/1.1\r\n%s%s%s\r\n%s" % (path, HOST, head, lines or b"Content-Length: %d\r\n" % len(data), data)


def pair(source: Random) -> tuple[bytes, bytes]:
    path, data = body(source)
    return path.encode(), data


def good(source: Random) -> tuple[bytes, bytes]:
    path, value = source.choice(GOOD)
    return path.encode(), written(Random(0), value)


# --- kinds ------------------------------------------------------------------------------------------------------------


def bodies(source: Random) -> Case:
    return Case("body", (post(*pair(source)),))


def chunked(source: Random) -> Case:
    """Chunks, most of them all right, with sizes, ends and trailers that are not."""
    path, data = good(source) if source.random() < 0.5 else pair(source)
    size = source.choice((1, 7, 64, 4096))
    chunks = [data[at : at + size] for at in range(0, min(len(data), 300 * size), size)]
    wire = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    if source.random() < 0.7:
        for _ in range(source.randint(1, 2)):
            at = source.randrange(len(wire))
            wire = wire[:at] + source.choice(CHUNK_SPOILERS) + wire[at + source.choice((0, 1, 2, 5)) :]
    head = source.choice(CODINGS) if source.random() < 0.4 else CHUNKED
    # Cut short or too long, a body is waited for; what is left over may be taken for a request of its own, and refused.
    return Case("chunks", (post(path, wire, JSON, head),), most=3, late=True)


CHUNK_SPOILERS = (
    b"", b"\r\n", b"\n", b"\r", b"0\r\n\r\n", b";a=b", b";" + b"x" * 5000, b"-", b"+", b"0x", b" ", b"\t", b"g", b"f" * 17,
    b"ffffffff\r\n", b"7fffffffffffffff\r\n", b"00000000000000000001\r\na\r\n", b"0\r\nX: y\r\n\r\n", b"\x00", b"1\n\x00\n",
    b"0\r\n\r\nGET " + MARK + b" HTTP/1.1\r\n" + HOST + b"\r\n",
)  # fmt: skip
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CODINGS = (
    b"Transfer-Encoding: chunked, identity\r\n", b"Transfer-Encoding: identity, chunked\r\n",
    b"Transfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"Transfer-Encoding:\x0bchunked\r\n",
    b"Transfer-Encoding: \"chunked\"\r\n", b"transfer-encoding: CHUNKED\r\n", b"Transfer-Encoding : chunked\r\n",
    b" Transfer-Encoding: chunked\r\n", b"X: y\r\n Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nTE: trailers\r\n",
    b"Transfer-Encoding\r\n: chunked\r\n", b"Transfer_Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n",
)  # fmt: skip


def smuggled(source: Random) -> Case:
    """Two lengths of one body, and within it a request of its own."""
    path, data = good(source)
    inner = b"GET " + MARK + b" HTTP/1.1\r\n" + HOST + b"\r\n"
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)
    both = source.choice((*[CHUNKED] * 9, *CODINGS))
    length = source.choice((0, 4, 5, len(data), len(chunks), len(chunks) + len(inner), 10**6))
    lines = [both, b"Content-Length: %d\r\n" % length]
    strict = both == CHUNKED and source.random() < 0.5
    if strict:
        source.shuffle(lines)
        return Case("smuggle", (post(path, chunks + inner, JSON, b"".join(lines)),), most=1, late=True, forbidden=MARK)
    if source.random() < 0.3:
        lines = [b"Content-Length: %d\r\n" % length, b"Content-Length: %d\r\n" % len(data)]
    if source.random() < 0.2:
        lines = [source.choice((b"Content-Length: +%d\r\n", b"Content-Length: 0%d\r\n", b"Content-Length: %d,%d\r\n" % (1,
        2) + b"X: %d\r\n",
                                b"Content-Length : %d\r\n", b"Content-Length: 0x%d\r\n", b"Content_Length: %d\r\n",
                                b"Content-Length: -%d\r\n")) % length]  # fmt: skip
    source.shuffle(lines)
    return Case("smuggle", (post(path, chunks + inner, JSON, b"".join(lines)),), most=3, late=True)


def headed(source: Random) -> Case:
    """A request line and headers with something put into them anywhere."""
    path, data = good(source) if source.random() < 0.5 else (source.choice(TARGETS), b"")
    request = b"%s %s HTTP/1.1\r\n" % (source.choice(METHODS) if source.random() < 0.5 else b"POST", path)
    if source.random() < 0.3:
        request = b"GET %s %s\r\n" % (source.choice(TARGETS), source.choice(VERSIONS))
    head = request + HOST + JSON + b"".join(source.choices(HEADERS, k=source.randint(0, 4)))
    head += b"Content-Length: %d\r\n\r\n" % len(data)
    if source.random() < 0.5:
        at = source.randrange(len(head))
        head = head[:at] + source.choice(HEAD_SPOILERS) + head[at + source.choice((0, 0, 1, 4)) :]
    return Case("head", (head + data,), most=2, late=True)


METHODS = (
    b"GET",
    b"HEAD",
    b"PUT",
    b"DELETE",
    b"PATCH",
    b"OPTIONS",
    b"TRACE",
    b"CONNECT",
    b"get",
    b"FROB",
    b"M-SEARCH",
    b"PRI",
    b"",
)
TARGETS = (
    b"/", b"*", b"/health", b"//health", b"/v1//models", b"/v1/models/", b"/v1/models/%00", b"/v1/models/" + b"a/" * 500,
    b"/%2e%2e/",
    b"/v1/models/..%2f..%2fetc%2fpasswd", b"/v1/responses/" + b"x" * 7000, b"/v1/responses/%ff", b"/v1/responses/a?stream=true",
    b"/v1/responses/%0d%0aX:y", b"/slots?" + b"a=b&" * 1500, b"/docs?a[]=1&a[]=%zz", b"/openapi.json#x",
    b"http://localhost/health",
    b"http://example.org/", b"localhost:80", b"/\xc3\xa9", b"/\xff", b"/" + b"x" * 9000, b"/health;a=b", b"\\health",
    b"/server_info?%00",
)  # fmt: skip
VERSIONS = (
    b"HTTP/1.0",
    b"HTTP/0.9",
    b"HTTP/2",
    b"HTTP/1.1 ",
    b"HTTP/1.10",
    b"HTTP/11",
    b"http/1.1",
    b"HTTP/-1.1",
    b"",
    b"ICAP/1.0",
)
HEADERS = (
    b"Host: a\r\n", b"Host:\r\n", b"Connection: close\r\n", b"Connection: keep-alive, Host\r\n", b"Expect: 100-continue\r\n",
    b"Expect: frob\r\n", b"Upgrade: websocket\r\nConnection: Upgrade\r\n", b"X-Request-Id: a\r\n",
    b"X-Request-Id: \xff\x80\r\n",
    b"X-Request-Id: " + b"a" * 3000 + b"\r\n", b"Content-Encoding: gzip\r\n", b"Content-Type: text/plain\r\n",
    b"Accept: */*;q=frob\r\n",
    b"Content-Type: application/json; charset=utf-7\r\n", b"Authorization: Bearer " + b"x" * 9000 + b"\r\n",
    b"Origin: null\r\n",
    b"Authorization: Basic \xff\r\n", b"Cookie: a=b\r\n" * 20, b"X: " + b"y" * 40_000 + b"\r\n", b"X-%s: y\r\n" % (b"z" * 9000),
    b"Access-Control-Request-Method: POST\r\n", b"Range: bytes=0-99999999999\r\n", b"If-None-Match: *\r\n",
    b"traceparent: 00-0-0-0\r\n",
    b"X-Forwarded-For: 127.0.0.1\r\n", b"X-Http-Method-Override: DELETE\r\n", b"anthropic-beta: " + b"a," * 900 + b"\r\n",
    b"Host: localhost\r\n",
    b"".join(b"X-%d: y\r\n" % n for n in range(120)), b"Last-Event-ID: 5\r\n", b"anthropic-version: frob\r\n",
    b"Content-Type:\r\n",
)  # fmt: skip
HEAD_SPOILERS = (
    b"\x00", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\n\n", b" ", b"\t", b"\x0b", b"\x7f", b"\x80", b"\xff", b":", b": ",
    b"\r\n ", b"\r\n\t",
    b"(", b"\"", b"%", b"HTTP/1.1", b"x" * 9000, b"\r\nX\r\n", b"\r\n: y\r\n", b"\r\nHost: evil.example\r\n",
    b"\r\nContent-Length: 9\r\n",
)  # fmt: skip


def pipelined(source: Random) -> Case:
    """Several requests at once; some are none."""
    count = source.randint(2, 5)
    requests = [post(*source.choice((good, pair))(source)) for _ in range(count)]
    if source.random() < 0.3:
        requests.insert(source.randrange(count), source.choice((b"frob\r\n\r\n", b"\r\n" * 50, b"\x16\x03\x01" + bytes(40))))
    return Case("pipeline", (b"".join(requests),), most=count + 1, late=True)


def halved(source: Random) -> Case:
    """A client that goes away in the middle: of a head, of a body, or of an answer."""
    data = post(*good(source))
    return Case("half", (data[: source.randint(1, len(data))],), leaves=True)


def dripping(source: Random) -> Case:
    """A client that sends a little, then nothing or next to nothing."""
    data = post(*good(source))
    at = source.choice((1, 10, len(data) // 2, len(data) - 1))
    more = [data[at + n : at + n + 1] for n in range(source.choice((0, 0, 30)))]
    return Case("slow", (data[:at], *(part for part in more if part)), pause_s=0.1, late=True)


def packed(source: Random) -> Case:
    """Bodies that are small on the wire only, or are said to be."""
    path, data = good(source)
    coding = source.choice((b"gzip", b"deflate", b"br", b"gzip, gzip", b"GZIP", b"x-gzip", b"identity, gzip", b"zstd", b"frob"))
    blob = source.choice((GZIPPED, ZIPPED, gzip.compress(data, mtime=0), data, b""))
    return Case("packed", (post(path, blob, JSON + b"Content-Encoding: " + coding + b"\r\n"),), most=2, late=True)


GZIPPED = gzip.compress(gzip.compress(bytes(20 * 2**20), mtime=0), mtime=0)
ZIPPED = zlib.compress(bytes(10 * 2**20), 9)


def large(source: Random) -> Case:
    """Five megabytes, as a length or as chunks; or only the claim."""
    path, _ = good(source)
    filler = source.choice((b" ", b"[", b'"', b'{"prompt": "' + b"a " * 100, b'[[[["', b'"\\u0041"', b"\xff", b"[],", b"1,"))
    data = (filler * (5 * 2**20 // len(filler) + 1))[: 5 * 2**20]
    match source.randrange(4):
        case 0:
            return Case("large", (post(path, data[: 4 * 2**20]),), most=2)
        case 1:
            return Case("large", (post(path, data),), most=2)
        case 2:
            chunks = b"100000\r\n" + data[: 2**20] + b"\r\n"
            return Case("large", (post(path, chunks * 5 + b"0\r\n\r\n", JSON, b"Transfer-Encoding: chunked\r\n"),), most=2)
        case _:
            return Case(
                "large", (post(path, b"{}", JSON, b"Content-Length: %d\r\n" % source.choice((2**31, 2**63, 10**30))),), most=2
            )


def typed(source: Random) -> Case:
    """Bodies under a wrong name."""
    path, data = source.choice((good, pair))(source)
    kind = source.choice((b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data; boundary=x",
    b"application/xml",
                          b"application/json; charset=utf-16", b"application/msgpack", b"*/*", b"\xff",
                          b"application/json, text/plain"))  # fmt: skip
    return Case("type", (post(path, data, b"Content-Type: " + kind + b"\r\n"),))


KINDS: tuple[tuple[float, Callable[[Random], Case]], ...] = (
    (55, bodies), (9, chunked), (7, smuggled), (12, headed), (4, pipelined), (6, halved), (0.5, dripping), (2.5, packed),
    (1, large),
    (3, typed),
)  # fmt: skip


def case(seed: int, number: int) -> Case:
    """Case `number` of a seed."""
    source = Random(f"{seed}/{number}")
    return source.choices([kind for _, kind in KINDS], [weight for weight, _ in KINDS])[0](source)


def planted(path: str, good_body: dict[str, object], seed: int, number: int) -> Case:
    """A spoilt body of one endpoint: that of a fault which was put there to be found."""
    source = Random(f"planted {seed}/{number}")
    return Case("body", (post(path.encode(), spoilt(source, path, good_body)),))
