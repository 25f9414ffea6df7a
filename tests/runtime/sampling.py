"""The sampler of every rank over given logits: a row of hidden states is here a row of logits, and the head takes its range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from shardwise.comm.solo import Recording
from shardwise.nn.batch import Batch, Rank
from shardwise.runtime.parts import Parts
from shardwise.runtime.recent import Recent
from shardwise.runtime.sample import Sampler
from shardwise.sched.step import Chosen, Draw, Item, Result, Step
from shardwise.spec.layout import Layout
from shardwise.spec.traffic import Call
from tests.checkpoints import FAMILIES
from tests.group import layout_of
from tests.nn.pieces import each

NONE = torch.empty(0, dtype=torch.int64)


def layout_for(vocabulary: int, shares: Sequence[float]) -> Layout:
    return layout_of({**FAMILIES["llama"], "vocab_size": vocabulary}, shares)


def item(draw: Draw, position: int = 1, **more: Any) -> Item:
    """One that draws the token at `position`."""
    return Item(draw.sequence, (0,), position - 1, position, (), drawn=(draw.sequence,), **more)


def rows_of(items: Sequence[Item]) -> tuple[torch.Tensor, torch.Tensor]:
    """(drawn, scored) of a batch whose tokens are those that have rows, and no others."""
    kinds = [
        kind for one in items for kind in (*(("scored",) * len(one.targets)), *(("drawn",) * (one.rows - len(one.targets))))
    ]
    drawn, scored = ([i for i, kind in enumerate(kinds) if kind == wanted] for wanted in ("drawn", "scored"))
    return torch.tensor(drawn, dtype=torch.int64), torch.tensor(scored, dtype=torch.int64)


class Sampled:
    """The lead rank's `results`, the tokens that every rank has on its device, each one's calls, and for how many rows of top_p
    the candidates were not enough, offer by offer."""

    def __init__(self, logits: torch.Tensor, items: Sequence[Item], draws: Sequence[Draw], shares: Sequence[float]) -> None:
        layout = layout_for(logits.shape[1], shares)
        drawn, scored = rows_of(items)
        batch = Batch(NONE, NONE, NONE, drawn, scored, (), ())
        step = Step(1, tuple(items))

        def work(rank: Rank) -> tuple[tuple[Result, ...], torch.Tensor, list[Call], tuple[int, ...]]:
            comm = Recording(rank.comm)
            parts = Parts(Rank(layout, rank.index, comm, rank.device, rank.dtype, rank.kv_dtype))
            recent = Recent(len(draws), rank.device)
            own = slice(parts.own.start, parts.own.stop)
            sampler = Sampler(parts, lambda hidden: hidden, lambda hidden: hidden[:, own], recent)
            sampler.take(step, logits, batch)
            results = sampler.sample(1, draws)
            return results, recent.tokens[: len(draws)], comm.calls, sampler.uncertain

        ranks = each(layout, work)
        assert all(results == () for results, *_ in ranks[1:])
        assert all(torch.equal(tokens, ranks[0][1]) for _, tokens, *_ in ranks), "the ranks drew unlike tokens"
        assert all(calls == ranks[0][2] and uncertain == ranks[0][3] for *_, calls, uncertain in ranks)
        self.layout, (self.results, self.tokens, self.calls, self.uncertain) = layout, ranks[0]


def sample(
    logits: torch.Tensor, draws: Sequence[Draw], shares: Sequence[float] = (1.0,), positions: Sequence[int] | None = None
) -> tuple[Result, ...]:
    """One row of logits for each draw."""
    places = positions or [1] * len(draws)
    items = [item(draw, position) for draw, position in zip(draws, places, strict=True)]
    return Sampled(logits, items, draws, shares).results


def tokens(results: Sequence[Result]) -> list[int | None]:
    return [result.tokens[0].token if result.tokens else None for result in results]


def only(result: Result) -> Chosen:
    [chosen] = result.tokens
    return chosen
