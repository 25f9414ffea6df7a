"""What a token costs on its way from the engine's process to a front: CPU microseconds on both sides of the socket together.

    python bench/bridge.py [--streams 64] [--tokens 200] [--json FILE]

A fake engine makes the tokens, on a thread of this process as the desk's; its own cost is measured without a socket and
taken off.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import threading
import time
from pathlib import Path

from shardwise.bench.about import commit, machine
from shardwise.engine.contract import ServingEngine
from shardwise.engine.desk import Desk
from shardwise.engine.fake import FakeEngine
from shardwise.engine.remote import RemoteEngine
from shardwise.engine.setup import Options, Setup, resolve
from shardwise.sched.events import Ended, Event
from shardwise.sched.request import SamplingParams


async def streams(engine: ServingEngine, count: int, tokens: int) -> None:
    """So many requests, to their ends."""
    loop, left, done = asyncio.get_running_loop(), [count], asyncio.Event()

    def sink(event: Event) -> None:
        if isinstance(event, Ended):
            left[0] -= 1
            if not left[0]:
                loop.call_soon_threadsafe(done.set)

    for n in range(count):
        engine.submit((n,), SamplingParams(max_tokens=tokens, ignore_eos=True), sink)
    await done.wait()


def alone(setup: Setup, count: int, tokens: int) -> float:
    """CPU seconds without a socket."""
    with FakeEngine(setup, lambda *_: 7, held=True) as engine:
        engine.allow(tokens + 10)
        began = time.process_time()
        asyncio.run(streams(engine, count, tokens))
        return time.process_time() - began


def through(setup: Setup, count: int, tokens: int) -> float:
    """CPU seconds with one."""

    async def go() -> float:
        remote = await RemoteEngine.open(ours, setup)
        began = time.process_time()
        await streams(remote, count, tokens)
        spent = time.process_time() - began
        remote.close()
        return spent

    with FakeEngine(setup, lambda *_: 7) as engine:
        desk = Desk(engine)
        ours, theirs = socket.socketpair()
        desk.join(theirs)
        serving = threading.Thread(target=desk.serve)
        serving.start()
        spent = asyncio.run(go())
        desk.stop()
        serving.join()
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    setup = resolve(Options("shardling", device="cpu"))
    found: dict[str, object] = {
        "command": f"python bench/bridge.py --streams {asked.streams} --tokens {asked.tokens}",
        "commit": commit(),
        "machine": machine(),
    }
    count = asked.streams * asked.tokens
    without = min(alone(setup, asked.streams, asked.tokens) for _ in range(3)) * 1e6 / count
    found["engine_alone_us"] = round(without, 2)
    found["bridge_us"] = round(min(through(setup, asked.streams, asked.tokens) for _ in range(3)) * 1e6 / count - without, 2)
    print(
        f"{asked.streams} streams of {asked.tokens} tokens: {found['bridge_us']} CPU microseconds a token, both sides together"
    )
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
