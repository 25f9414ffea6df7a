"""Fronts of `shardwise serve` over an engine that costs them nothing, and clients that count tokens: for benchmarks of fronts.

`python bench/fronts.py --core-fd N --every S` is the engine's process: a fake one behind the real desk, a token a choice every
S seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, cast

import psutil

from shardwise.engine.bridge import pack_setup
from shardwise.engine.desk import Desk
from shardwise.engine.fake import FakeEngine
from shardwise.engine.setup import Options, Setup, resolve
from shardwise.engine.text import open_tokenizer
from shardwise.server.fleet import Begin, Member
from shardwise.server.listener import listen
from shardwise.server.settings import Settings

TEXT = "Once upon a time there was a little girl who had a red ball and a big dog, and they played in the park all day. "
"""What the engine says, again and again: a frame for each token, as each of them has a text of its own."""

PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


CONTEXT = 2**17
"""More than the model has, for long prompts: nothing is computed."""

STEP_TOKENS = 8192
"""Of a prompt that is scored, so many tokens' scores come at once: a large step, of a large GPU."""


def roomy() -> Setup:
    """The bundled model, with room for long prompts."""
    setup = resolve(Options("shardling", device="cpu"))
    limits = replace(setup.limits, tokens=STEP_TOKENS)
    return replace(setup, context=CONTEXT, pages=tuple(CONTEXT for _ in setup.pages), limits=limits)


def serve_fake(control: socket.socket, every_s: float) -> None:
    """The engine's process: takes fronts in until the other end closes."""
    setup = roomy()
    words = open_tokenizer(setup.folder).encode(TEXT, add_special_tokens=False)
    engine = FakeEngine(setup, lambda _prompt, _choice, place: words[place % len(words)], held=True)
    desk = Desk(engine)

    def tick() -> None:
        due = time.monotonic()
        while True:
            due += every_s
            time.sleep(max(0.0, due - time.monotonic()))
            if engine.running:
                engine.allow(1)

    def take() -> None:
        while True:
            data, found, _, _ = socket.recv_fds(control, 1, 1)
            if not data:
                desk.stop()
                return
            for descriptor in found:
                desk.join(socket.socket(fileno=descriptor))

    for work in (tick, take):
        threading.Thread(target=work, daemon=True).start()
    desk.serve()


@dataclass(frozen=True)
class Fronts:
    """Fronts that answer at `port`; `core` is the engine's process."""

    port: int
    processes: Sequence[psutil.Process]
    core: psutil.Process

    def cpu_s(self) -> float:
        """What the fronts have computed so far."""
        return sum(sum(process.cpu_times()[:2]) for process in self.processes)


@asynccontextmanager
async def fronts(count: int, every_s: float) -> AsyncIterator[Fronts]:
    """So many fronts, on one port, before one engine."""
    setup = roomy()
    ours, theirs = socket.socketpair()
    command = [sys.executable, __file__, "--core-fd", str(theirs.fileno()), "--every", str(every_s)]
    core = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    theirs.close()
    members: list[Member] = []
    settings = Settings(port=0, max_connections=100_000)
    with listen("127.0.0.1", 0) as listener:
        try:
            for number in range(count):
                near, far = socket.socketpair()
                socket.send_fds(ours, [b"+"], [far.fileno()])
                far.close()
                members.append(Member(Begin(number, pack_setup(setup), settings), listener, near))
            for member in members:
                report = await member.report()
                assert report.failure is None, report
            found = [psutil.Process(member.process.pid) for member in members]
            yield Fronts(listener.getsockname()[1], found, psutil.Process(core.pid))
        finally:
            for member in members:
                member.signal(signal.SIGKILL)
                await member.ended()
            ours.close()
            core.wait(10)


@dataclass
class Reader(asyncio.Protocol):
    """One streamed answer as a client gets it: when each token came."""

    body: dict[str, Any]
    path: str
    mark: bytes
    times: list[float] = field(default_factory=list)
    tokens: int = 0
    begun: bool = False
    failed: bytes = b""
    ended: bool = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        data = json.dumps({**self.body, "stream": True}).encode()
        self.transport = cast(asyncio.Transport, transport)
        head = f"POST {self.path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
        self.transport.write(head.encode() + data)

    def data_received(self, data: bytes) -> None:
        if not self.begun and not data.startswith(b"HTTP/1.1 200 "):
            self.failed = data[:500]
        self.begun = True
        if found := data.count(self.mark):
            self.times.append(time.perf_counter())
            self.tokens += found
        if b"data: [DONE]" in data:
            self.ended = True
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = True


async def opened(where: Fronts, api: str, count: int, tokens: int, **asked: Any) -> list[Reader]:
    """So many streams, each of `tokens` tokens. Returns when all have a token; RuntimeError after a minute."""
    loop = asyncio.get_running_loop()
    prompt: dict[str, Any] = {"prompt": "Once"}
    if api == "chat":
        prompt = {"messages": [{"role": "user", "content": "Tell me a story."}]}
    body = {**prompt, "max_tokens": tokens, "ignore_eos": True, **asked}
    mark = b'"delta":{"content":"' if api == "chat" else b'"text":"'
    found = []
    for _ in range(count):
        _, reader = await loop.create_connection(lambda: Reader(body, PATHS[api], mark), "127.0.0.1", where.port)
        found.append(reader)
    until = time.monotonic() + 60
    while not all(reader.tokens for reader in found):
        bad = next((reader.failed for reader in found if reader.failed), b"")
        if bad or time.monotonic() > until:
            raise RuntimeError(f"not all {count} streams began: {bad[:300]!r}")
        await asyncio.sleep(0.01)
    return found


def close(readers: Sequence[Reader]) -> None:
    """Leaves them all."""
    for reader in readers:
        with suppress(OSError):
            reader.transport.abort()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core-fd", type=int, required=True)
    parser.add_argument("--every", type=float, required=True)
    args = parser.parse_args()
    serve_fake(socket.socket(fileno=args.core_fd), args.every)


if __name__ == "__main__":
    main()
