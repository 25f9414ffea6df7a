"""Rotary position embedding: the angles of a batch, once a step."""

from __future__ import annotations

import torch

from shardwise.nn.batch import Batch
from shardwise.nn.kernels.turning import Angles
from shardwise.spec import blocks


class Rope:
    """Angles for one `blocks.Rope`. Which frequencies hold depends on how long each token's request is by now."""

    def __init__(self, block: blocks.Rope, device: torch.device) -> None:
        self.block = block
        self.frequencies = torch.tensor(block.frequencies, dtype=torch.float32, device=device)
        self.long = torch.tensor(block.long, dtype=torch.float32, device=device) if block.long else None

    def __call__(self, batch: Batch, dtype: torch.dtype) -> Angles:
        steps, scale = self._steps(batch)
        angles = batch.positions[:, None].float() * steps  # [tokens, dim / 2]
        both = torch.cat((angles, angles), -1) if self.block.halves else angles.repeat_interleave(2, -1)
        cos, sin = both.cos() * scale, both.sin() * scale
        if self.block.wide:
            dtype = torch.float32
        return cos.to(dtype)[:, None], sin.to(dtype)[:, None]

    def _steps(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Frequencies [dim / 2] or [tokens, dim / 2], and what multiplies cos and sin."""
        block, boundary = self.block, self.block.boundary
        if boundary is None:
            return self.frequencies, block.scale
        beyond = (batch.known > boundary)[:, None]
        if self.long is not None:
            scale = torch.where(beyond, block.long_scale, block.scale)
            return torch.where(beyond, self.long, self.frequencies), scale
        assert block.dynamic is not None
        return torch.where(beyond, self._ntk(batch.known, block.dynamic, boundary), self.frequencies), block.scale

    def _ntk(self, known: torch.Tensor, dynamic: tuple[float, float], boundary: int) -> torch.Tensor:
        """NTK scaling by length, as transformers' "dynamic": the base grows with every token past the boundary."""
        base, factor = dynamic
        dim = self.block.dim
        grown = base * ((factor * known.float() / boundary) - (factor - 1)) ** (dim / (dim - 2))
        exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=known.device) / dim
        return 1.0 / grown[:, None] ** exponents
