"""How fast an engine continues and reads: the same requests through the same scheduler as anybody's.

Times are those at which the engine's thread hands tokens out, which is once a step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from itertools import pairwise

from shardwise.engine.contract import TokenEngine
from shardwise.errors import ShardwiseError
from shardwise.sched.events import Emitted, Ended, Event
from shardwise.sched.request import SamplingParams

WARM = 3
"""Steps that are not counted, after the last prompt was read."""


def room(batch: int, context: int, steps: int, step_tokens: int) -> int:
    """Tokens that a sequence needs: those that decode while others' prompts are read go further than the last one."""
    reading = -(-batch * context // max(1, step_tokens - batch)) + batch
    return context + reading + steps + WARM + 2


def prompts(batch: int, tokens: int, vocabulary: int) -> list[list[int]]:
    """Prompts that differ from the first token on."""
    return [[(3 + index + 7 * place) % vocabulary for place in range(tokens)] for index in range(batch)]


def decode(engine: TokenEngine, batch: int, context: int, steps: int) -> list[float]:
    """Seconds of each of `steps` steps in which `batch` sequences that began with `context` tokens get a token each.

    ShardwiseError where one fails.
    """
    watch = _Steady(batch, steps + WARM)
    params = SamplingParams(temperature=0, max_tokens=engine.setup.context - context, ignore_eos=True)
    vocabulary = engine.setup.layout.model.vocab
    running = [engine.submit(prompt, params, watch) for prompt in prompts(batch, context, vocabulary)]
    watch.full.wait()
    for request in running:
        engine.abort(request)
    watch.over.wait()
    if watch.failed is not None:
        raise ShardwiseError(f"a request failed while {batch} sequences were decoded: {watch.failed}")
    return [later - sooner for sooner, later in pairwise(watch.stamps[WARM : WARM + steps + 1])]


def prefill(engine: TokenEngine, batch: int, tokens: int) -> float:
    """Seconds until `batch` prompts of so many tokens have been read, and each has its first token."""
    over, failed, left = threading.Event(), list[str](), [batch]

    def sink(event: Event) -> None:
        if isinstance(event, Ended):
            failed.extend([event.error] if event.error else [])
            left[0] -= 1
            if not left[0]:
                over.set()

    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    begun = time.perf_counter()
    for prompt in prompts(batch, tokens, engine.setup.layout.model.vocab):
        engine.submit(prompt, params, sink)
    over.wait()
    if failed:
        raise ShardwiseError(f"a prompt of {tokens} tokens failed: {failed[0]}")
    return time.perf_counter() - begun


class _Steady:
    """The sink of all sequences: the times of one of them, from when all have begun."""

    def __init__(self, batch: int, steps: int) -> None:
        self.stamps: list[float] = []
        self.full, self.over = threading.Event(), threading.Event()
        self.failed: str | None = None
        self._batch, self._steps = batch, steps
        self._begun: set[int] = set()
        self._last: int | None = None
        self._ended = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Emitted):
            self._begun.add(event.request)
            if self._last is None and len(self._begun) == self._batch:
                self._last = event.request
            if event.request == self._last:
                self.stamps.append(time.perf_counter())
                if len(self.stamps) > self._steps:
                    self.full.set()
        elif isinstance(event, Ended):
            self._ended += 1
            if event.error is not None or len(self.stamps) <= self._steps:
                self.failed = self.failed or event.error or "it ended before the others had begun"
                self.full.set()
            if self._ended == self._batch:
                self.over.set()


def spread(values: Sequence[float], digits: int = 2) -> dict[str, float]:
    """Least, median and greatest."""
    ordered = sorted(values)
    half = len(ordered) // 2
    median = ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
    return {"min": round(ordered[0], digits), "median": round(median, digits), "max": round(ordered[-1], digits)}
