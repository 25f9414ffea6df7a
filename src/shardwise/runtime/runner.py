"""One rank at work: weights, cache and modules in place, steps in, results out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch

from shardwise.nn.batch import Rank
from shardwise.nn.build import Decoder
from shardwise.runtime import inputs, load, sample
from shardwise.runtime.cache import PagedCache
from shardwise.sched.step import Result, Step
from shardwise.spec.binding import Place


class Runner:
    """Computes steps. Made whole: after the constructor the weights are loaded and the cache is allocated.

    `bound` None means random weights (`--load-format dummy`).
    """

    def __init__(self, rank: Rank, pages: Sequence[int], bound: Mapping[str, Place] | None, progress: load.Progress) -> None:
        self.rank = rank
        self.arena, tensors = load.arena(rank.layout, rank.index, rank.device)
        slices = rank.layout.slices(rank.index)
        if bound is None:
            load.fill_dummy(tensors, slices, progress)
        else:
            load.fill(tensors, slices, bound, progress)
        self.cache = PagedCache(rank, pages)
        self.decoder = Decoder(rank, tensors)

    @torch.inference_mode()
    def logits(self, step: Step) -> torch.Tensor:
        """Logits [rows of all items, vocabulary], float32, the same on every rank; runs the step's tokens into the cache."""
        tokens, batch = inputs.batch(step, self.rank)
        hidden = self.decoder(tokens, batch, self.cache)
        # Rows may be none: a part of a prompt. Every rank knows that, so none of them gathers.
        return self.decoder.logits(hidden, batch) if len(batch.sampled) else hidden.new_empty(0, self.rank.layout.model.vocab)

    @torch.inference_mode()
    def step(self, step: Step) -> tuple[Result, ...]:
        """One forward, and the next token of every item that draws one. Only the lead rank's answer counts."""
        ends = accumulate(item.rows for item in step.items)
        drawn = [end - 1 for item, end in zip(step.items, ends, strict=True) if item.draw]
        # Every rank takes part in gathering the logits; what to make of them is decided once, by the lead.
        logits = self.logits(step)
        return sample.sample(logits[drawn], step.items) if drawn and self.rank.at.tp == 0 else ()
