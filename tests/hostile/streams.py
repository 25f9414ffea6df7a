"""Good streams that run beside whatever else a server has to do: each must say every time what it said when it was alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.hostile.answers import Unreadable, replies
from tests.hostile.exchange import Target, exchanged
from tests.hostile.wire import JSON, Case, post

TELL = {"messages": [{"role": "user", "content": "Tell me a story."}], "stream": True, "return_token_ids": True}
WRITE = {"prompt": "Once upon a time", "stream": True, "return_token_ids": True, "ignore_eos": True}
STREAMS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", {**TELL, "max_tokens": 40, "seed": 11, "temperature": 0.8}),
    ("/v1/chat/completions", {**TELL, "max_tokens": 40, "temperature": 0}),
    ("/v1/completions", {**WRITE, "max_tokens": 60, "temperature": 0}),
    ("/v1/completions", {**WRITE, "max_tokens": 60, "n": 2, "seed": 5, "temperature": 1}),
)
Said = dict[int, tuple[str, tuple[int, ...]]]
"""Of each choice its text and its ids. The frames differ with the time that they come at."""


@dataclass
class Streams:
    """What became of them: how many came whole, how many were begun again, and what was wrong."""

    good: int = 0
    late: int = 0
    faults: list[str] = field(default_factory=list)


class Unanswered(Exception):
    """The server closed a connection without a word, after so many seconds."""


async def streamed(target: Target, path: str, body: dict[str, Any]) -> Said:
    """What a good stream says."""
    head = JSON + (b"Authorization: Bearer %s\r\n" % target.key.encode() if target.key else b"")
    data, took_s = await exchanged(target, Case("good", (post(path.encode(), json.dumps(body).encode(), head),)), 0)
    if not data:
        raise Unanswered(took_s)
    (reply,) = replies(data)
    assert reply.status == 200, reply.body
    texts: dict[int, str] = {}
    ids: dict[int, tuple[int, ...]] = {}
    frames = [line[6:] for line in reply.body.decode().split("\n") if line.startswith("data: ")]
    assert frames[-1] == "[DONE]", frames[-1]
    for frame in frames[:-1]:
        for choice in json.loads(frame)["choices"]:
            n = choice["index"]
            texts[n] = texts.get(n, "") + (choice.get("text") or choice.get("delta", {}).get("content") or "")
            ids[n] = ids.get(n, ()) + tuple(choice.get("token_ids") or ())
    return {n: (texts[n], ids[n]) for n in texts}


async def repeated(target: Target, number: int, alone: Said, found: Streams, stop: asyncio.Event) -> None:
    """One of them again and again, at least once."""
    path, body = STREAMS[number]
    done = 0
    while not (stop.is_set() and done):
        try:
            said = await streamed(target, path, body)
        except Unanswered as error:
            if error.args[0] < target.patience_s:
                found.faults.append(f"good stream {number} was closed after {error} s")
                return
            found.late += 1  # on a machine so busy, the limit on heads came first
            continue
        except (AssertionError, ValueError, KeyError, IndexError, Unreadable, OSError, TimeoutError) as error:
            found.faults.append(f"good stream {number} failed: {type(error).__name__}: {str(error)[:300]}")
            return
        found.good += 1
        done += 1
        if said != alone:
            found.faults.append(f"good stream {number} said {said!r}, alone {alone!r}")


@asynccontextmanager
async def beside(target: Target, found: Streams) -> AsyncIterator[None]:
    """They run as long as the block does."""
    alone = [await streamed(target, *stream) for stream in STREAMS]
    assert all(text for said in alone for text, _ in said.values()), "the good streams say something"
    stop = asyncio.Event()
    running = [asyncio.create_task(repeated(target, n, said, found, stop)) for n, said in enumerate(alone)]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*running)
