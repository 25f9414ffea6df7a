"""Ten thousand mixed requests: afterwards every process is as large as it was, and every page is free again."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

import psutil
import pytest

from shardwise.engine.engine import Engine
from shardwise.engine.process_ranks import ProcessRanks
from shardwise.engine.setup import Options, resolve
from shardwise.sched.events import Ended, Event
from shardwise.sched.request import SamplingParams

WARM, REQUESTS = 1000, 10_000
GROWTH_BYTES = 8 * 2**20
"""What a process may have more at the end: the allocator's own slack, less than a thousandth of it for each request."""


def run(engine: Engine, numbers: range) -> None:
    """Requests of all kinds, at most 256 of them open at a time; some are given up on the way."""
    ended: SimpleQueue[Event] = SimpleQueue()
    opened = 0
    for number in numbers:
        chance = random.Random(number)
        params = SamplingParams(
            n=chance.choice((1, 1, 1, 3)),
            temperature=chance.choice((0.0, 0.8)),
            top_p=chance.choice((1.0, 0.9)),
            presence_penalty=chance.choice((0.0, 0.0, 0.4)),
            logprobs=chance.choice((None, None, 2)),
            prompt_logprobs=chance.choice((None, None, None, 1)),
            seed=number,
            max_tokens=chance.choice((1, 3, 8)),
        )
        prompt = [chance.randrange(3, 96) for _ in range(chance.choice((2, 9, 30, 80)))]
        request = engine.submit(prompt, params, lambda event: ended.put(event) if isinstance(event, Ended) else None)
        opened += 1
        if chance.random() < 0.05:
            engine.abort(request)
        if opened >= 256:
            assert ended.get().error is None  # type: ignore[union-attr]
            opened -= 1
    for _ in range(opened):
        assert ended.get().error is None  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_stays_flat(checkpoint: Callable[[str], Path], figures: Callable[..., None]) -> None:
    setup = resolve(Options(str(checkpoint("llama")), tp=2, dtype="float32", device="cpu", threads=1))
    with Engine(setup) as engine:
        assert isinstance(engine.ranks, ProcessRanks)
        processes = [psutil.Process(), *(psutil.Process(p.pid) for p in engine.ranks.processes)]
        run(engine, range(WARM))
        before = [process.memory_info().rss for process in processes]
        run(engine, range(WARM, WARM + REQUESTS))
        after = [process.memory_info().rss for process in processes]
        pools = engine.core.scheduler.cache.pools
        # One arena, allocated once, all of one size of page: what is free is free for whoever comes.
        assert [pool.free for pool in pools] == [pool.count - 1 for pool in pools]
    grown = max(b - a for a, b in zip(before, after, strict=True))
    figures("10 000 mixed requests", grown_mib=grown / 2**20, free_pages=sum(pool.free for pool in pools))
    assert grown < GROWTH_BYTES
