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
    beside them, first the likeliest ids [N, top], then those that were named [N, named], with their log-probabilities."""

    ids: torch.Tensor
    logprobs: torch.Tensor
    ranks: torch.Tensor
    beside: torch.Tensor
    beside_logprobs: torch.Tensor

    def chosen(self, wanted: list[slice]) -> list[Chosen]:
        """On the host, row i with wanted[i] of what is beside it."""
        rows = (self.ids, self.logprobs, self.ranks, self.beside, self.beside_logprobs)
        return [
            Chosen(token, logprob, rank, tuple(zip(ids[part], logprobs[part], strict=True)))
            for part, (token, logprob, rank, ids, logprobs) in zip(
                wanted, zip(*(x.tolist() for x in rows), strict=True), strict=True
            )
        ]


def score(logits: torch.Tensor, ids: torch.Tensor, top: int, parts: Parts, named: torch.Tensor | None = None) -> Scores:
    """logits [N, own ids], ids [N] and `named` [N, any number], of the whole vocabulary. Every rank takes part, and gets the
    same."""
    own = torch.arange(parts.own.start, parts.own.stop, device=logits.device)
    named = ids[:, None][:, :0] if named is None else named
    sent = (
        _masses(logits).view(torch.int64)[:, None],
        _held(logits, torch.cat((ids[:, None], named), -1), parts).view(torch.int32).long(),
        order.likeliest(logits, own, top),
    )
    found = parts.gather(torch.cat(sent, -1), "logprobs")  # [rows, parts, 2 + named + top]
    given = slice(1, 2 + named.shape[1])
    mass = found[:, :, 0].contiguous().view(torch.float64).logsumexp(-1)[:, None]
    values = found[:, :, given].int().view(torch.float32).amax(1)
    likeliest, top_ids = order.unpack(order.largest(found[:, :, given.stop :].flatten(1), top))
    ranks = parts.sum(_ahead(logits, own, values[:, :1], ids[:, None]), "ranks") + 1
    logprobs = values.double() - mass
    beside = torch.cat((likeliest.double() - mass, logprobs[:, 1:]), -1)
    return Scores(ids, logprobs[:, 0], ranks, torch.cat((top_ids, named), -1), beside)


def finite(logits: torch.Tensor) -> torch.Tensor:
    """[N]: whether all of this rank's logits [N, own ids] are."""
    if not logits.shape[1]:
        return torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    return torch.isfinite(logits.amax(-1)) & torch.isfinite(logits.amin(-1))


def _held(logits: torch.Tensor, ids: torch.Tensor, parts: Parts) -> torch.Tensor:
    """The logits [N, M] of those of the ids [N, M] that this rank has, minus infinity for the others."""
    if not parts.own:
        return logits.new_full(ids.shape, -torch.inf)
    own = ids - parts.own.start
    found = logits.gather(1, own.clamp(0, len(parts.own) - 1))
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
