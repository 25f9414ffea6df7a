"""Clients that come and go as they like, against a real server: raw sockets on one event loop, and what each of them got."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"


def post(path: str, body: Mapping[str, Any]) -> bytes:
    """A whole request."""
    data = json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


def asked(words: str, tokens: int, *, stream: bool, **more: Any) -> bytes:
    """A request for a completion of so many tokens, always the same ones."""
    return post(TEXT, {"prompt": words, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": stream, **more})


@dataclass
class Answer:
    """What came on one connection. `status` 0: nothing did. `cut`: it ended before it was complete."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: bool = False
    seconds: float = 0.0
    refused: bool = False

    @property
    def complete(self) -> bool:
        """An accepted request that got all that it asked for."""
        if self.status != 200 or self.cut:
            return False
        if not self.headers["content-type"].startswith("text/event-stream"):
            return bool(json.loads(self.body)["choices"][0]["finish_reason"])
        frames = [line for line in self.body.splitlines() if line.startswith(b"data: ")]
        return frames[-1] == b"data: [DONE]" and json.loads(frames[-2][6:])["choices"][0]["finish_reason"] == "length"

    @property
    def text(self) -> str:
        """The answer's text, streamed or not."""
        if not self.headers["content-type"].startswith("text/event-stream"):
            return str(json.loads(self.body)["choices"][0]["text"])
        frames = [line[6:] for line in self.body.splitlines() if line.startswith(b"data: {")]
        return "".join(json.loads(frame)["choices"][0]["text"] for frame in frames)


async def opened(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port, limit=2**24)


async def ask(url: str, request: bytes) -> Answer:
    """One request on a connection of its own, read to its end."""
    answer, begun = Answer(), time.perf_counter()
    try:
        reader, writer = await opened(url)
    except OSError:
        answer.refused = True
        return answer
    try:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        read_head(answer, head)
        await _body(reader, answer)
    except (OSError, asyncio.IncompleteReadError):
        answer.cut = True
    finally:
        writer.close()
    answer.seconds = time.perf_counter() - begun
    return answer


def read_head(answer: Answer, head: bytes) -> None:
    """Status and headers, from their bytes."""
    status, *lines = head.decode("latin-1").split("\r\n")
    answer.status = int(status.split()[1])
    pairs = (line.partition(": ") for line in lines if line)
    answer.headers = {name.lower(): value for name, _, value in pairs}


async def _body(reader: asyncio.StreamReader, answer: Answer) -> None:
    if (length := answer.headers.get("content-length")) is not None:
        answer.body = await reader.readexactly(int(length))
        return
    parts: list[bytes] = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    answer.body = b"".join(parts)


KINDS = ("connected", "head", "body", "sent", "headers", "tokens")
"""When a client leaves: before it says anything, within what it says, when all is said, or within the answer."""

WAYS = ("FIN", "RST", "half")
"""How: it closes; it resets; it only says that it says no more, and reads on until the server ends it."""


async def drop(url: str, chance: random.Random, tokens: int) -> str:
    """One client that leaves at some byte: when and how."""
    kind, way, stream = chance.choice(KINDS), chance.choice(WAYS), chance.random() < 0.6
    request = asked(f"Once upon a time {chance.random()}", tokens, stream=stream)
    body = request.index(b"\r\n\r\n") + 4
    sent = {"connected": 0, "head": chance.randrange(1, body), "body": chance.randrange(body, len(request))}
    reader, writer = await opened(url)
    try:
        writer.write(request[: sent.get(kind, len(request))])
        if kind == "headers" and stream:
            await reader.readuntil(b"\r\n\r\n")
        elif kind == "tokens" and stream:
            for _ in range(chance.randrange(1, 12)):
                await reader.readuntil(b"data: ")
        else:
            await asyncio.sleep(chance.choice((0.0, 0.0, 0.01, 0.1)))
        sock = writer.get_extra_info("socket")
        if way == "RST":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif way == "half":
            writer.write_eof()
            async with asyncio.timeout(30):
                while await reader.read(65536):
                    pass
    except (OSError, asyncio.IncompleteReadError):
        pass  # it was closed from the other side first, as a request that is broken off may be
    finally:
        writer.transport.abort() if way == "RST" else writer.close()
    return f"{kind} {way}"


async def drops(url: str, count: int, seed: int, *, at_once: int = 8, tokens: int = 400) -> float:
    """So many clients that leave; when the last one had."""
    left = iter(range(count))

    async def some() -> None:
        for number in left:
            await drop(url, random.Random(f"{seed}/{number}"), tokens)

    await asyncio.gather(*(some() for _ in range(at_once)))
    return time.monotonic()


async def until(holds: Callable[[], Any], within_s: float) -> float | None:
    """How long it took until it held; None where it did not within that time. What `holds` asks may block."""
    begun = time.monotonic()
    while not await asyncio.to_thread(holds):
        if time.monotonic() - begun > within_s:
            return None
        await asyncio.sleep(0.01)
    return time.monotonic() - begun


class _Kept(asyncio.Protocol):
    """A connection that is used again and again, for one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._came = bytearray()
        self._answer: Answer | None = None
        self._done: asyncio.Future[None] | None = None

    async def ask(self, request: bytes) -> Answer:
        """Cut where the connection was closed before all had come."""
        assert self.transport is not None
        self._answer, self._done, begun = Answer(), asyncio.get_running_loop().create_future(), time.perf_counter()
        self.transport.write(request)
        self._read()  # too many connections are told so before anything is asked
        await self._done
        self._came.clear()
        self._answer.seconds = time.perf_counter() - begun
        return self._answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._came += data
        self._read()

    def _read(self) -> None:
        if self._answer is None or self._done is None:
            return
        if not self._answer.status and (end := self._came.find(b"\r\n\r\n")) >= 0:
            read_head(self._answer, bytes(self._came[: end + 4]))
            del self._came[: end + 4]
        length = self._answer.headers.get("content-length")
        if not self._answer.status or self._done.done():
            return
        if length is None and self._came.endswith(b"\r\n0\r\n\r\n"):
            # Every chunk holds whole lines, and the sizes between them begin with no "data: ".
            self._answer.body = bytes(self._came)
            self._done.set_result(None)
        elif length is not None and len(self._came) == int(length):
            self._answer.body = bytes(self._came)
            self._done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and self._done is not None and not self._done.done():
            self._answer.cut = True
            self._done.set_result(None)


class Pool:
    """A client that keeps its connections, as those of most libraries do; opens one more where all are in use."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._where = (parts.hostname, parts.port)
        self._idle: list[_Kept] = []

    async def ask(self, request: bytes) -> Answer:
        """One request, and its answer to the end."""
        kept = self._idle.pop() if self._idle else None
        if kept is None or kept.transport is None or kept.transport.is_closing():
            _, kept = await asyncio.get_running_loop().create_connection(_Kept, *self._where)
        answer = await kept.ask(request)
        if not answer.cut:
            self._idle.append(kept)
        return answer

    def close(self) -> None:
        """Closes what is idle."""
        for kept in self._idle:
            if kept.transport is not None:
                kept.transport.close()
