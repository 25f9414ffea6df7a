"""What clients suffer from other clients of the same front: the time between two tokens of those that read at once, beside ones
that hardly read, and beside one that sends a very long prompt, has it scored, or sends a large body. The engine is a fake one.

    python bench/neighbours.py [--streams 40] [--seconds 10] [--json FILE]

Run it alone on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import uvloop
from fronts import PATHS, Fronts, Reader, close, fronts, opened

from shardwise.bench.about import commit, machine

RATE = 20
LONGEST = 20_000
SLOW, SLOW_BYTES_S = 64, 10
LOGPROBS = 5
LONG_PROMPT = "Once upon a time there was a little girl who had a red ball. " * 6000
"""About 100 000 tokens."""

LARGE_BODY_BYTES = 3_000_000


def between(readers: Sequence[Reader], begun: float, ended: float) -> dict[str, float]:
    """Milliseconds between two tokens of one stream, within a time."""
    gaps = sorted(b - a for reader in readers for a, b in pairwise(reader.times) if a >= begun and b <= ended)
    found = {f"p{at}_ms": round(1000 * gaps[min(len(gaps) - 1, len(gaps) * at // 100)], 1) for at in (50, 99)}
    return {**found, "max_ms": round(1000 * gaps[-1], 1)}


async def during(readers: Sequence[Reader], seconds: float) -> dict[str, float]:
    begun = time.perf_counter()
    await asyncio.sleep(seconds)
    return between(readers, begun, time.perf_counter())


def request(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = (
        f"POST {PATHS['completions']} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


@asynccontextmanager
async def slow_readers(where: Fronts, **asked: Any) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Clients that read ten bytes a second of answers that come much faster, with the smallest buffers that there are. Tasks,
    which end where the server has cut the client off."""
    loop, socks = asyncio.get_running_loop(), []
    for _ in range(SLOW):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", where.port))
        body = {"prompt": "Once", "max_tokens": LONGEST, "ignore_eos": True, "stream": True, **asked}
        await loop.sock_sendall(sock, request(body))
        socks.append(sock)

    async def sip(sock: socket.socket) -> None:
        with suppress(OSError):
            while await loop.sock_recv(sock, SLOW_BYTES_S):
                await asyncio.sleep(1)

    tasks = [asyncio.create_task(sip(sock)) for sock in socks]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for sock in socks:
            sock.close()


def resident(where: Fronts) -> int:
    return sum(process.memory_info().rss for process in where.processes)


async def beside_slow(where: Fronts, readers: Sequence[Reader], seconds: float, **asked: Any) -> dict[str, Any]:
    """Long enough that what they are sent exceeds all buffers, and that the first are cut off."""
    alone, before = await during(readers, seconds), resident(where)
    async with slow_readers(where, **asked) as tasks:
        await asyncio.sleep(1)
        beside = await during(readers, 4 * seconds)
        grown, cut = resident(where) - before, sum(task.done() for task in tasks)
    return {"alone": alone, "beside": beside, "growth_mib": round(grown / 2**20, 1), "cut_off": cut}


async def sent(where: Fronts, data: bytes) -> tuple[int, float]:
    """(status, seconds until the first byte of the answer)."""
    begun = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", where.port)
    writer.write(data)
    status = int((await reader.readline()).split()[1])
    took_s = time.perf_counter() - begun
    await reader.read()
    writer.close()
    return status, took_s


async def beside_large(
    readers: Sequence[Reader], seconds: float, send: Callable[[], Awaitable[tuple[int, float]]]
) -> dict[str, Any]:
    """One large request after another, for a while."""
    alone, begun = await during(readers, seconds), time.perf_counter()
    answers = []
    while time.perf_counter() < begun + seconds:
        answers.append(await send())
        await asyncio.sleep(0.2)
    beside = between(readers, begun, time.perf_counter())
    slowest = round(max(took_s for _, took_s in answers), 3)
    statuses = sorted({status for status, _ in answers})
    return {"alone": alone, "beside": beside, "sent": len(answers), "statuses": statuses, "slowest_answer_s": slowest}


async def run(args: argparse.Namespace) -> dict[str, Any]:
    closing = {"max_tokens": 1, "ignore_eos": True}
    message = {"role": "user", "content": "x" * 80}
    large = {"messages": [message] * (LARGE_BODY_BYTES // len(json.dumps(message))), "model": "no such model"}
    bodies = {
        "100 000 tokens": request({"prompt": LONG_PROMPT, **closing}),
        "100 000 tokens scored": request({"prompt": LONG_PROMPT, "echo": True, "logprobs": LOGPROBS, **closing}),
        "3 MB of JSON": request(large).replace(PATHS["completions"].encode(), PATHS["chat"].encode(), 1),
    }
    found: dict[str, Any] = {}
    slow: dict[str, dict[str, Any]] = {"64 slow readers": {}, "64 slow readers, 5 logprobs": {"logprobs": LOGPROBS}}
    for name, asked in slow.items():  # each with a front of its own: what the one before grew by stays with it
        async with fronts(1, 1 / RATE) as where:
            readers = await opened(where, "chat", args.streams, LONGEST)
            await asyncio.sleep(1)
            found[name] = await beside_slow(where, readers, args.seconds, **asked)
            print(name, found[name], flush=True)
            close(readers)
    async with fronts(1, 1 / RATE) as where:
        readers = await opened(where, "chat", args.streams, LONGEST)
        await asyncio.sleep(1)
        for name, data in bodies.items():
            found[name] = await beside_large(readers, args.seconds, lambda data=data: sent(where, data))
            print(name, found[name], flush=True)
        close(readers)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about = {"command": "python bench/neighbours.py", "commit": commit(), "machine": machine()}
    result = {**about, **uvloop.run(run(args))}
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
