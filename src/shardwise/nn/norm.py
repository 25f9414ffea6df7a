"""RMS and layer norm. Computed in float32 and rounded once, as the models were trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from shardwise.nn.batch import Rank
from shardwise.nn.kernels.joint import Normed
from shardwise.spec import blocks
from shardwise.spec.traffic import HEADS_NORM


class Norm:
    """[..., size] to the same shape and dtype."""

    def __init__(self, block: blocks.Norm, path: str, rank: Rank, tensors: Mapping[str, torch.Tensor]) -> None:
        self.eps = block.eps
        self.rms = block.kind != "layer"
        self.weight = tensors[f"{path}.weight"] if block.kind != "l2" else None
        self.bias = tensors[f"{path}.bias"] if block.bias else None
        self.offset, self.wide = block.offset, block.wide
        self.kernels = rank.kernels

    def described(self) -> Normed | None:
        """For compiled kernels; None where they have no such norm."""
        if self.weight is None or not self.kernels.compiled:
            return None
        return Normed("rms" if self.rms else "layer", self.weight, self.bias, self.eps, self.offset)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if not self.rms and self.weight is not None:
            return self.kernels.step.layer_norm(x, self.weight, self.bias, self.eps)
        if self.kernels.compiled and self.weight is not None:
            return self.kernels.step.rms_norm(x, self.weight, self.eps, self.offset)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        if self.weight is None:
            return wide.to(x.dtype)
        weight = self.weight.float() if self.wide else self.weight
        if self.offset:
            weight = weight + self.offset
        return (weight * (wide if self.wide else wide.to(x.dtype))).to(x.dtype)


class HeadsNorm:
    """q [tokens, own query heads, dim] and k [tokens, own KV heads, dim], each normed over all heads of all ranks."""

    def __init__(self, block: blocks.HeadsNorm, path: str, rank: Rank, tensors: Mapping[str, torch.Tensor]) -> None:
        self.block, self.comm = block, rank.comm
        self.q, self.k = tensors[f"{path}.q_norm.weight"], tensors[f"{path}.k_norm.weight"]
        self.cut = rank.layout.cut(block.q)
        # Held by several ranks, a KV head is counted by the first of them: its elements are the last of that rank's own.
        self.counted = len(rank.layout.counted(block.k, rank.at))

    def __call__(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        wide_q, wide_k = q.flatten(1).float(), k.flatten(1).float()
        counted = wide_k[:, wide_k.shape[1] - self.counted :]
        # In float64 the same float32 comes out wherever heads are cut.
        both = [part.double() if self.block.wide else part for part in (wide_q, counted)]
        squares = torch.stack([part.square().sum(-1) for part in both], -1)  # [tokens, 2]
        if self.cut:
            squares = self.comm.all_reduce(squares, site=HEADS_NORM)
        squares = squares.float()
        wide_q = wide_q * torch.rsqrt(squares[:, :1] / self.block.q.size + self.block.eps)
        wide_k = wide_k * torch.rsqrt(squares[:, 1:] / self.block.k.size + self.block.eps)
        return (self.q * wide_q).to(q.dtype).view_as(q), (self.k * wide_k).to(k.dtype).view_as(k)
