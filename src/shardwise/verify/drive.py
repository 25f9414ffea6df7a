"""Ranks computing texts as they would for clients: the same scheduler, chunks, pages and batches, but whole logits come back.

Along tokens that are given, if there are any, so that two runs are compared after the same history. It judges nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from shardwise.engine.ranks import Ranks
from shardwise.engine.setup import Setup
from shardwise.sched.scheduler import Scheduler
from shardwise.sched.sequence import Request
from shardwise.sched.step import Chosen, Item, Result, Step
from shardwise.verify.trace import Text, Trace, begun

if TYPE_CHECKING:
    from shardwise.verify.trace import Logits

STEP_TOKENS = 96
"""The most tokens of one step: few enough that even short texts are cut into chunks."""

SEQUENCES = 8
"""How many texts go side by side."""

Advance = Callable[[int], None]
"""Called with the number of places done since the last call."""


def traced(
    ranks: Ranks, setup: Setup, texts: Sequence[Text], limit: int, theirs: Sequence[Trace] | None, stride: int, advance: Advance
) -> list[Trace]:
    """What the ranks make of each text and of the tokens after it: those of `theirs`, else `limit` of their own choice."""
    found = begun(texts, theirs)
    scheduler = Scheduler(setup.pages, [group.window for group in setup.layout.cache], setup.limits, lambda: 0.0)
    for number, trace in enumerate(found):
        new = limit if theirs is None else len(trace.greedy)
        scheduler.add(Request(number, tuple(trace.tokens[: trace.prompt]), new, scored=True))
    while scheduler.requests:
        step, _ = scheduler.step()
        assert step is not None, "nothing is in flight, so that something can run"
        owners = [scheduler.owner(item.sequence) for item in step.items]
        numbers = [owner[0] for owner in owners if owner is not None]
        rows = _rows(ranks, step)
        results = []
        for item, number in zip(step.items, numbers, strict=True):
            tokens = [
                found[number].put(next(rows), None if theirs is None else theirs[number], stride) for _ in range(item.rows)
            ]
            results.append(_result(item, tokens))
            advance(item.rows)
        assert next(rows, None) is None, "the ranks sent more rows than the step has"
        scheduler.apply(step.number, results)
    return found


def _rows(ranks: Ranks, step: Step) -> Iterator[Logits]:
    import numpy as np

    for message in ranks.logits(step):
        yield from np.frombuffer(message.logits, "<f4").reshape(-1, message.vocabulary)


def _result(item: Item, tokens: Sequence[int]) -> Result:
    """What the scheduler hears: which token follows each place, and nothing of how likely it was."""
    chosen = tuple(Chosen(token) for token in tokens)
    return Result(item.sequence, chosen[len(item.targets) :], chosen[: len(item.targets)])
