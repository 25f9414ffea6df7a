"""Mixtures of experts: a router, and a product for each expert that any token chose.

A token's result depends on that token alone, and is added up expert by expert in order: no other token, and no rank, changes
it. The loop over experts asks for their counts on the host; a kernel that groups them would not.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from shardwise.nn.batch import Rank
from shardwise.nn.joined import Part, gated, joined
from shardwise.nn.kernels import dense as kernels
from shardwise.nn.mlp import MLP
from shardwise.nn.product import products
from shardwise.nn.state import State
from shardwise.spec import blocks, moe
from shardwise.spec.traffic import SITES

Tensors = Mapping[str, torch.Tensor]


class Router:
    """[tokens, hidden] to weights and experts' numbers, both [tokens, top]. Every rank computes it, from the same bits."""

    def __init__(self, block: moe.Router, path: str, dense: kernels.Dense, tensors: Tensors) -> None:
        self.block, self.dense = block, dense
        self.weight = tensors[f"{path}.weight"]
        self.bias = tensors[f"{path}.bias"] if block.bias else None
        self.correction = tensors[f"{path}.e_score_correction_bias"] if block.correction else None

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        block, dtype = self.block, x.dtype
        logits = self.dense.linear(x.float() if block.precise else x, self.weight, self.bias)
        scores = self._scores(logits)  # [tokens, experts], float32
        # Sigmoids saturate where logits still differ: without a correction, logits decide.
        ranked = scores if self.correction is None else scores + self.correction
        ranked = logits if block.score == "sigmoid" and self.correction is None else ranked
        chosen = self._grouped(ranked).topk(block.top, dim=-1).indices
        weights = scores.gather(1, chosen)
        if block.score == "softmax_of_top":
            weights = weights.softmax(-1)
        if block.normed:
            weights = weights / (weights.sum(-1, keepdim=True) + block.floor)
        if block.scale != 1.0:
            weights = weights * block.scale
        return (weights.to(dtype) if block.rounded else weights), chosen

    def _scores(self, logits: torch.Tensor) -> torch.Tensor:
        wide = logits.float()
        if self.block.score == "softmax_of_top":
            return wide
        return wide.softmax(-1) if self.block.score == "softmax" else wide.sigmoid()

    def _grouped(self, ranked: torch.Tensor) -> torch.Tensor:
        """The same with minus infinity for experts outside of a token's best groups."""
        groups = self.block.groups
        if groups is None or groups.count == groups.top:
            return ranked
        apart = ranked.unflatten(1, (groups.count, -1))
        best = apart.amax(-1) if groups.by == "max" else apart.topk(2, dim=-1).values.sum(-1)  # [tokens, groups]
        kept = torch.zeros_like(best, dtype=torch.bool).scatter_(1, best.topk(groups.top, dim=-1).indices, True)
        return apart.masked_fill(~kept[..., None], -torch.inf).flatten(1)


class MoE:
    """[tokens, hidden] to [tokens, hidden] over this rank's part: its rows of every expert, or all rows of its experts."""

    def __init__(self, block: moe.MoE, path: str, rank: Rank, tensors: Tensors) -> None:
        assert block.down.experts is not None and (block.shared is None or block.shared.down.partial)
        self.router = Router(block.router, _join(path, block.router.name), rank.kernels.dense, tensors)
        gates, ups, downs = (_stack(each, path, rank, tensors) for each in (block.gate, block.up, block.down))
        self.inner = len(rank.layout.span(block.down.inp, rank.at))
        self.shared = MLP(block.shared, _join(path, block.shared.name), rank, tensors) if block.shared else None
        gate = block.shared_gate
        self.shared_gate = tensors[_join(path, f"{gate.name}.weight")] if gate else None
        self.weighs_inputs = block.weighs_inputs
        self.own = rank.layout.span(block.down.experts, rank.at)
        # Where an expert's rows are cut, the first rank's part alone has the bias of their sum.
        self.biased = block.down.bias and not (rank.layout.cut(block.down.inp) and rank.at.tp)
        kernels, downs = rank.kernels, downs if self.biased else [(down, None) for down, _ in downs]
        # Of each own expert: hidden to own rows, twice, and own rows to hidden.
        self.ways_in = [joined(both, kernels) for both in zip(gates, ups, strict=True)]
        self.out = [gated(down, block.activation, kernels) for down in downs]
        self.site = SITES["expert"] if block.summed(rank.layout.cut) else None
        self.wide = block.wide
        self.comm, self.dense = rank.comm, rank.kernels.dense

    def __call__(self, x: torch.Tensor, state: State) -> torch.Tensor:
        weights, chosen = self.router(x)
        y = self._routed(self.comm.enter(x, site="moe_in"), self.comm.enter(weights, site="moe_in"), chosen)
        if self.shared is not None:
            part = self.shared(x, state)
            y = y + (part if self.shared_gate is None else self.dense.linear(x, self.shared_gate, None).sigmoid() * part)
        return y.to(x.dtype) if self.site is None else self.comm.all_reduce(y, site=self.site, dtype=x.dtype)

    def _routed(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """This rank's part of the sum over each token's experts."""
        y = torch.zeros_like(x, dtype=torch.float64 if self.wide else x.dtype)
        if not (self.own and (self.inner or self.biased)):
            return y
        top = chosen.shape[1]
        # Places in [tokens · top], expert by expert, tokens in order.
        order = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=self.router.block.experts).tolist()
        stop = sum(counts[: self.own.start])
        for index, expert in enumerate(self.own):
            start, stop = stop, stop + counts[expert]
            if start < stop:
                places = order[start:stop]
                rows = places // top
                # A token is among an expert's rows once at most: nothing is added in an order of its own.
                y.index_add_(0, rows, self._expert(index, x[rows], weights.flatten()[places, None]).to(y.dtype))
        return y

    def _expert(self, index: int, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """x: [rows, hidden], weights: [rows, 1]."""
        x = x * weights.to(x.dtype) if self.weighs_inputs else x
        y = self.out[index](*self.ways_in[index](x))[0]
        return y if self.weighs_inputs else y * weights


def _stack(linear: blocks.Linear, path: str, rank: Rank, tensors: Tensors) -> list[Part]:
    """The product of each own expert, and its bias."""
    name = _join(path, linear.name)
    each = products(linear, f"{name}.weight", rank, tensors)
    biases = tensors[f"{name}.bias"] if linear.bias else [None] * len(each)
    return list(zip(each, biases, strict=True))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
