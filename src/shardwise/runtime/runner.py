"""One rank at work: weights, cache and modules in place, steps in, results out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from shardwise.comm.ticking import CHOOSING, HEAD
from shardwise.nn.batch import Batch, Rank
from shardwise.nn.build import Decoder
from shardwise.runtime.cache import PagedCache
from shardwise.runtime.inputs import Inputs
from shardwise.runtime.kinds import pieces
from shardwise.runtime.limits import Buckets, Limits
from shardwise.runtime.parts import Parts
from shardwise.runtime.recent import Recent
from shardwise.runtime.sample import Sampler
from shardwise.runtime.weights import Weights
from shardwise.sched.step import Draw, Result, Step


class Runner:
    """Computes steps with the weights of this rank. Made whole: after the constructor the cache is allocated.

    `pages` counts the page SCRATCH of each cache group too. `buckets` None are those that suit the device. `room` is memory
    for the cache, where there is some of the right size already.
    """

    def __init__(
        self,
        rank: Rank,
        weights: Weights,
        pages: Sequence[int],
        limits: Limits,
        buckets: Buckets | None = None,
        room: torch.Tensor | None = None,
    ) -> None:
        self.rank = rank
        self.weights = weights
        self.cache = PagedCache(rank, pages, room)
        self.decoder = Decoder(rank, weights.tensors)
        recent = Recent(limits.sequences, rank.device)
        self.inputs = Inputs(rank, limits, buckets or Buckets.of(rank.device.type, limits), recent)
        self.parts = Parts(rank)
        self.sampler = Sampler(self.parts, self.decoder.final, self.decoder.logits, recent)
        self._early: tuple[Draw, ...] = ()

    @property
    def arena(self) -> torch.Tensor:
        """The memory of the weights."""
        return self.weights.arena

    @torch.inference_mode()
    def forward(self, step: Step) -> None:
        """Runs the step's tokens into the cache, and keeps what `sample` needs until then. Nothing waits for the device."""
        hidden, batch = self._hidden(step)
        self.sampler.take(step, hidden, batch)
        self.rank.pulse.idle()

    @torch.inference_mode()
    def sample(self, number: int, draws: Sequence[Draw]) -> tuple[Result, ...]:
        """The results of step `number`, the last that went forward: `draws` has one for each sequence in the `drawn` of its
        items, in order. Every rank takes part; the lead rank answers, the others with ()."""
        told, self._early = (*self._early, *draws), ()
        self.rank.pulse.layer(CHOOSING)
        results = self.sampler.sample(number, told)
        self.rank.pulse.idle()
        return results if self.rank.at.tp == 0 else ()

    def early(self, draws: Sequence[Draw]) -> None:
        """Draws of the next `sample`, before those that it is given itself."""
        self._early += tuple(draws)

    @torch.inference_mode()
    def logits(self, step: Step) -> torch.Tensor:
        """Instead of forward and sample: the logits of all rows of all items in order, [rows, vocabulary] in float32, gathered
        from all ranks."""
        return torch.cat(list(self.logits_pieces(step, step.tokens)))

    @torch.inference_mode()
    def logits_pieces(self, step: Step, most: int) -> Iterator[torch.Tensor]:
        """The same in pieces of up to `most` rows, so that no more of them are held at once. Every rank takes part in each."""
        hidden, batch = self._hidden(step)
        rows = []
        scored, drawn = batch.scored.tolist(), batch.drawn.tolist()
        for item in step.items:
            count = item.rows - len(item.targets)
            rows += scored[: len(item.targets)] + drawn[:count]
            scored, drawn = scored[len(item.targets) :], drawn[count:]
        for piece in pieces(len(rows), most):
            self.rank.pulse.layer(HEAD)
            whole = self.parts.whole(self.decoder.logits(hidden[rows[piece.start : piece.stop]]), "logits")
            self.rank.pulse.idle()  # who takes them may be slow
            yield whole

    def _hidden(self, step: Step) -> tuple[torch.Tensor, Batch]:
        """Hidden states [T, hidden] of a step, and its batch."""
        self.rank.pulse.step(step.number, step.tokens)
        for group, pairs in enumerate(step.copies):
            if pairs:
                self.cache.copy(group, [source for source, _ in pairs], [target for _, target in pairs])
        tokens, batch = self.inputs.batch(step)
        hidden = self.decoder(tokens, batch, self.cache)
        self.rank.pulse.layer(HEAD)
        return hidden, batch
