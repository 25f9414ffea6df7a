"""Muon for the matrices and AdamW for the rest: learns rare facts in fewer steps than AdamW alone.

Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon) replaces the momentum of a matrix by a nearly orthogonal
one, found by a Newton-Schulz iteration. torch.optim.Muon iterates in bf16, which most CPUs only emulate; this is fp32.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch

QUINTIC = (3.4445, -4.7750, 2.0315)
ROUNDS = 4


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum for tensors of two axes; equal shapes are computed together."""

    def __init__(self, matrices: Iterable[torch.Tensor], lr: float) -> None:
        super().__init__(list(matrices), {"lr": lr, "momentum": 0.95, "weight_decay": 0.02})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes = defaultdict(list)
            for matrix in group["params"]:
                shapes[matrix.shape].append(matrix)
            for (rows, columns), matrices in shapes.items():
                change = orthogonal(torch.stack([self.momentum(matrix, group["momentum"]) for matrix in matrices]))
                scale = group["lr"] * max(1, rows / columns) ** 0.5
                for matrix, part in zip(matrices, change, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(part, alpha=scale)

    def momentum(self, matrix: torch.Tensor, keep: float) -> torch.Tensor:
        state = self.state[matrix]
        mean = state.setdefault("mean", torch.zeros_like(matrix))
        mean.lerp_(matrix.grad, 1 - keep)
        return matrix.grad.lerp(mean, keep)


def orthogonal(batch: torch.Tensor) -> torch.Tensor:
    """The orthogonal matrix near each of a batch: [matrices, rows, columns] to the same."""
    tall = batch.shape[1] > batch.shape[2]
    x = batch.mT if tall else batch
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = QUINTIC
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x
