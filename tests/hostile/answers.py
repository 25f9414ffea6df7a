"""What comes back on a connection, read as strictly as a client reads it, and what must not be in it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

LEAKS = re.compile(rb"0x[0-9a-f]{8,}|site-packages|Traceback|\.py\b|object at 0x")
"""What an answer must never show of the server's inside."""

NO_BODY = (204, 304)


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer."""

    status: int
    head: bytes
    body: bytes


class Unreadable(Exception):
    """What came is no answer in HTTP/1.1; the text says why."""


def replies(data: bytes, *, headless: bool = False) -> list[Reply]:
    """All answers in what came until the connection closed. `headless`: they are to HEAD. Unreadable where one is cut short."""
    found = []
    while data:
        reply, data = first(data, headless=headless)
        if reply is None:
            raise Unreadable(f"an answer is cut short: {data[:200]!r}")
        if reply.status >= 200:
            found.append(reply)
    return found


def first(data: bytes, *, headless: bool = False) -> tuple[Reply | None, bytes]:
    """(the first answer, what follows it); None while it is not whole."""
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        return None, data
    match = re.match(rb"HTTP/1\.1 (\d{3}) [ -~]*\r\n", head + b"\r\n")
    if match is None:
        raise Unreadable(f"no status line: {data[:200]!r}")
    status = int(match[1])
    # A head that could not be read is answered with a body, whatever method it seems to have.
    if status < 200 or status in NO_BODY or (headless and (not rest or rest.startswith(b"HTTP/"))):
        return Reply(status, head, b""), rest
    lengths = re.findall(rb"(?im)^content-length: *(\d+)\r?$", head)
    chunked = re.search(rb"(?im)^transfer-encoding: *chunked\r?$", head) is not None
    if len(lengths) + chunked != 1:
        raise Unreadable(f"it has {len(lengths)} lengths and is {'' if chunked else 'not '}in chunks: {head!r}")
    if lengths:
        size = int(lengths[0])
        return (Reply(status, head, rest[:size]), rest[size:]) if len(rest) >= size else (None, data)
    return _chunks(Reply(status, head, b""), rest, data)


def _chunks(reply: Reply, rest: bytes, data: bytes) -> tuple[Reply | None, bytes]:
    parts = []
    while True:
        line, end, rest = rest.partition(b"\r\n")
        if not end:
            return None, data
        size = int(line, 16)
        if len(rest) < size + 2:
            return None, data
        if not size:
            return Reply(reply.status, reply.head, b"".join(parts)), rest[2:]
        parts.append(rest[:size])
        rest = rest[size + 2 :]


def faults(reply: Reply) -> list[str]:
    """What is wrong with an answer, whatever was asked."""
    found = []
    if reply.status >= 500 and reply.status != 505:
        found.append(f"status {reply.status}: {reply.body[:300]!r}")
    if leak := LEAKS.search(reply.head + reply.body):
        found.append(f"it shows {leak[0]!r}: {reply.body[max(0, leak.start() - 200) :][:400]!r}")
    kind = re.search(rb"(?im)^content-type: *([\w/+-]+)", reply.head)
    if kind and kind[1] == b"application/json":
        found += _json_faults(reply)
    if kind and kind[1] == b"text/event-stream":
        found += _stream_faults(reply)
    return found


def _json_faults(reply: Reply) -> list[str]:
    if not reply.body and b"content-length: 0" not in reply.head:
        return []  # of HEAD
    try:
        value = json.loads(reply.body, parse_constant=_no_number)
    except ValueError as error:
        return [f"no JSON ({error}): {reply.body[:200]!r}"]
    if reply.status >= 400 and not (isinstance(value, dict) and value.get("error")):
        return [f"an error without one: {reply.body[:200]!r}"]
    return []


def _stream_faults(reply: Reply) -> list[str]:
    """Frames are whole, JSON, and none tells of the server's own failure."""
    if not reply.body.endswith(b"\n\n"):
        return [f"a stream that ends within a frame: {reply.body[-200:]!r}"]
    found = []
    for line in reply.body.split(b"\n"):
        if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":
            try:
                json.loads(line[5:], parse_constant=_no_number)
            except ValueError:
                found.append(f"a frame that is no JSON: {line[:200]!r}")
            if b'"server_error"' in line or b'"api_error"' in line:
                found.append(f"a stream that failed: {line[:300]!r}")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number in JSON")
