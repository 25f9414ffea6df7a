"""Log-probabilities of given ids: as the model has them, before temperature, edits and narrowing. No rank has all logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from shardwise.runtime import order
from shardwise.runtime.parts import Parts
from shardwise.sched.step import Chosen


@dataclass(frozen=True, slots=True)
class Scores:
    """Of N ids: [N] log-probabilities (NaN where a row's logits are not finite) and ranks among all ids, 1 being the likeliest;
    and the likeliest ids [N, top] with their log-probabilities."""

    ids: torch.Tensor
    logprobs: torch.Tensor
    ranks: torch.Tensor
    top_ids: torch.Tensor
    top_logprobs: torch.Tensor

    def chosen(self, tops: list[int]) -> list[Chosen]:
        """On the host, row i with the first tops[i] of the likeliest."""
        rows = (self.ids, self.logprobs, self.ranks, self.top_ids, self.top_logprobs)
        return [
            Chosen(token, logprob, rank, tuple(zip(ids[:top], logprobs[:top], strict=True)))
            for top, (token, logprob, rank, ids, logprobs) in zip(
                tops, zip(*(x.tolist() for x in rows), strict=True), strict=True
            )
        ]


def score(logits: torch.Tensor, ids: torch.Tensor, top: int, parts: Parts) -> Scores:
    """logits [N, own ids] and ids [N], of the whole vocabulary. Every rank takes part, and gets the same."""
    own = torch.arange(parts.own.start, parts.own.stop, device=logits.device)
    values = _held(logits, ids, parts)
    sent = (
        _masses(logits).view(torch.int64)[:, None],
        values.view(torch.int32).long()[:, None],
        order.likeliest(logits, own, top),
    )
    found = parts.gather(torch.cat(sent, -1), "logprobs")  # [rows, parts, 2 + top]
    mass = found[:, :, 0].contiguous().view(torch.float64).logsumexp(-1)
    values = found[:, :, 1].int().view(torch.float32).amax(-1)
    likeliest, top_ids = order.unpack(order.largest(found[:, :, 2:].flatten(1), top))
    ranks = parts.sum(_ahead(logits, own, values[:, None], ids[:, None]), "ranks") + 1
    return Scores(ids, values.double() - mass, ranks, top_ids, likeliest.double() - mass[:, None])


def finite(logits: torch.Tensor) -> torch.Tensor:
    """[N]: whether all of this rank's logits [N, own ids] are."""
    if not logits.shape[1]:
        return torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    return torch.isfinite(logits.amax(-1)) & torch.isfinite(logits.amin(-1))


def _held(logits: torch.Tensor, ids: torch.Tensor, parts: Parts) -> torch.Tensor:
    """The logits [N] of the ids that this rank has, minus infinity for the others."""
    if not parts.own:
        return logits.new_full((len(ids),), -torch.inf)
    own = ids - parts.own.start
    found = logits.gather(1, own.clamp(0, len(parts.own) - 1)[:, None])[:, 0]
    return torch.where((own >= 0) & (own < len(parts.own)), found, -torch.inf)


def _masses(logits: torch.Tensor) -> torch.Tensor:
    """The logarithm [N] of the sum of exponentials over this rank's ids, float64."""
    if not logits.shape[1]:
        return logits.new_full((len(logits),), -torch.inf, dtype=torch.float64)
    return torch.where(finite(logits), logits.logsumexp(-1), torch.nan).double()


def _ahead(logits: torch.Tensor, own: torch.Tensor, values: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """How many [N] of this rank's `own` ids are likelier than ids [N, 1] of logits `values`, or equally likely and lower."""
    below = values.nextafter(torch.full_like(values, -torch.inf))
    found = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    for part in order.stretches(logits):
        found += (logits[:, part] > torch.where(own[part] < ids, below, values)).sum(-1)
    return found
