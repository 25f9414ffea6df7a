"""Requests without a key in every spelling of lines, hosts and paths: none may be served but what needs no key."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from tests.hostile.answers import Unreadable, replies
from tests.hostile.exchange import Target, exchanged
from tests.hostile.wire import HEAD_SPOILERS, METHODS, VERSIONS, Case

PATHS = (
    "/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages", "/tokenize",
    "/slots",
    "/server_info", "/version", "/docs", "/openapi.json", "/generate", "/info", "/tokenizer_info", "/health", "/ready", "/ping",
)  # fmt: skip
PIECES = (
    "/", "//", "/.", "/..", "/../", "..;/", "%2e%2e/", "%2e%2e%2f", "%2f", "%5c", "\\", ";", "?", "#", "%00", "%20", "%0d%0a",
    "@", ":", "/health",
    "/ready", "health/..", "/v1", "*", "http://localhost", "http://localhost/health", "//localhost/health", "%252f", "%c0%af",
    "%ef%bc%8f",
    "?x=/health", "/health?", "/health%3f", "/health#", "/health;", "&", "=", "~", "%", "+",
)  # fmt: skip
HOSTS = (
    "localhost", "localhost:80", "127.0.0.1", "[::1]", "LOCALHOST", "localhost.", "localhost/health", "localhost/health?",
    "localhost#",
    "evil.example", "", "localhost@evil.example", "a b", "localhost, localhost", "\\", "localhost:80:80", "127.1", "0",
    "\u00e9",
)  # fmt: skip
HEADERS = (
    "Authorization: Bearer", "Authorization: Bearer ", "Authorization: Bearer null", "Authorization: Bearer *",
    "Authorization: bearer\tx",
    "Authorization: Basic c2VzYW1lOg==", "x-api-key:", "x-api-key: *", "X-Original-URL: /health", "X-Rewrite-URL: /health",
    "X-Forwarded-Host: localhost", "X-Forwarded-For: 127.0.0.1", "X-HTTP-Method-Override: GET", "Connection: authorization",
    "Upgrade: h2c",
    "Origin: http://localhost", "Access-Control-Request-Method: POST", "Cookie: api_key=x", "Transfer-Encoding: chunked",
    "Content-Length: 5",
)  # fmt: skip
OPEN = (b'{"status":"ok"}\n', b"")
"""What the open routes say besides the documents; to HEAD, nothing."""

LENGTH = re.compile(rb"(?im)^content-length: *(\d+)\r?$")

DOCUMENTS = ("/docs", "/openapi.json", "/version")
"""Open too: what they say, they say to everybody."""


def request(seed: int, number: int) -> bytes:
    """Request `number` of a seed."""
    source = Random(f"access {seed}/{number}")
    path = source.choice(PATHS)
    for _ in range(source.choice((0, 1, 1, 2, 3))):
        at = source.randrange(len(path) + 1)
        path = path[:at] + source.choice(PIECES) + path[at:]
    if source.random() < 0.3:
        path = "".join(source.choices((*PIECES, *PATHS), k=source.randint(1, 4)))
    if source.random() < 0.2:
        path = "".join(each.upper() if source.random() < 0.3 else each for each in path)
    method = source.choice(("GET", "POST", source.choice(METHODS).decode()))
    version = "HTTP/1.1" if source.random() < 0.8 else source.choice(VERSIONS).decode()
    host = "localhost" if source.random() < 0.6 else source.choice(HOSTS)
    lines = [
        f"{method} {path} {version}",
        f"Host: {host}",
        "Connection: close",
        *source.sample(HEADERS, source.choice((0, 0, 1, 2))),
    ]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode()
    if source.random() < 0.25:
        at = source.randrange(len(head))
        head = head[:at] + source.choice(HEAD_SPOILERS) + head[at + source.choice((0, 1)) :]
    return head + b"0\r\n\r\n"


def passes(request: bytes, data: bytes, said: Sequence[bytes]) -> str | None:
    """What was served that should not have been; None where nothing was: `said` may be. Unreadable for what is no answer."""
    lengths = {str(len(body)).encode() for body in said}
    for reply in replies(data, headless=request.startswith(b"HEAD ")):
        if reply.status >= 500 and reply.status != 505:
            return f"status {reply.status}"
        preflight = reply.status == 204 and not reply.body and b"access-control-allow-origin" not in reply.head
        if reply.status < 300 and reply.body not in said and not preflight:
            return f"status {reply.status}: {reply.body[:200]!r}"
        if reply.status < 300 and not reply.body and not lengths.issuperset(LENGTH.findall(reply.head)):
            return f"status {reply.status} with {reply.head!r}"
    return None


async def document(target: Target, path: str) -> bytes:
    """What is said at a path to who has no key."""
    asked = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    answer, _ = await exchanged(target, replace(CASE, parts=(asked,)), 0)
    [reply] = replies(answer)
    assert reply.status == 200 and reply.body, reply.head
    return reply.body


async def tried(target: Target, seed: int, count: int, at_once: int = 8) -> tuple[Counter[int], list[tuple[int, str]]]:
    """(statuses, (number, what got through) of each that did) of `count` requests."""
    statuses: Counter[int] = Counter()
    through: list[tuple[int, str]] = []
    numbers = iter(range(count))

    said = [*OPEN, *[await document(target, path) for path in DOCUMENTS]]

    async def work() -> None:
        for number in numbers:
            data = request(seed, number)
            answer, _ = await exchanged(target, replace(CASE, parts=(data,)), 0)
            try:
                statuses.update(reply.status for reply in replies(answer, headless=data.startswith(b"HEAD ")))
                if what := passes(data, answer, said):
                    through.append((number, what))
            except Unreadable as error:
                through.append((number, str(error)))

    await asyncio.gather(*(work() for _ in range(at_once)))
    return statuses, through


CASE = Case("access", (), late=True)
