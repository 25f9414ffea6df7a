"""The vocabulary as the ranks hold it: each has the logits of its own range of ids, and hears of the others' by gathering."""

from __future__ import annotations

import torch

from shardwise.nn.batch import Rank


class Parts:
    """One rank's view: it holds the ids in `own` of `vocabulary`, one of `size` parts. Only `lead` answers to the engine."""

    def __init__(self, rank: Rank) -> None:
        axis = rank.layout.model.head.linear.out
        self._spans = rank.layout.spans(axis) if rank.layout.cut(axis) else None
        self._comm = rank.comm
        self.vocabulary, self.own = axis.size, rank.layout.span(axis, rank.at)
        self.size = len(self._spans) if self._spans else 1
        self.largest = max(len(span) for span in self._spans) if self._spans else axis.size
        self.lead = rank.at.tp == 0
        self.step = rank.kernels.step

    def whole(self, x: torch.Tensor, site: str) -> torch.Tensor:
        """[rows, own ids] of every rank, joined to [rows, vocabulary]."""
        return x if self._spans is None else self._comm.all_gather(x, self._spans, dim=-1, site=site)

    def gather(self, x: torch.Tensor, site: str) -> torch.Tensor:
        """[rows, numbers] of every rank, to [rows, parts, numbers]."""
        rows, width = x.shape
        if self._spans is None:
            return x[:, None]
        ranges = [range(part * width, part * width + width) for part in range(self.size)]
        return self._comm.all_gather(x, ranges, dim=-1, site=site).view(rows, self.size, width)

    def sum(self, x: torch.Tensor, site: str) -> torch.Tensor:
        """The sum over all parts."""
        return x if self._spans is None else self._comm.all_reduce(x, site=site)

    def decide(self, x: torch.Tensor, site: str) -> torch.Tensor:
        """The lead rank's `x`, on every rank."""
        return x if self._spans is None else self._comm.broadcast(x, 0, site=site)
