"""What a rank's modules compute with, chosen once: compiled kernels on a CPU that has them, torch everywhere else."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from shardwise import native
from shardwise.nn.kernels.attention import Attending, NativeAttending, TorchAttending
from shardwise.nn.kernels.dense import Dense, NativeDense, TorchDense
from shardwise.nn.kernels.joint import Joints
from shardwise.nn.kernels.pool import Pool
from shardwise.nn.kernels.quantised import NativeQuantised, Quantised, TorchQuantised
from shardwise.nn.kernels.step import NativeStep, Step, TorchStep


@dataclass(frozen=True, slots=True)
class Kernels:
    """A family of kernels each. `compiled`: activations are float32, whatever the weights are, and several products are one
    call of `joints`."""

    compiled: bool
    step: Step
    dense: Dense
    quantised: Quantised
    attention: Attending
    joints: Joints | None = None

    @staticmethod
    def reference() -> Kernels:
        """Torch's: the reference."""
        return Kernels(False, TorchStep(), TorchDense(), TorchQuantised(), TorchAttending())

    @staticmethod
    def of(device: torch.device, threads: int, crowded: bool = False) -> Kernels:
        """What is fastest on `device`, with so many threads; `crowded`: see `Pool`."""
        if device.type != "cpu" or not native.available():
            return Kernels.reference()
        pool = Pool(threads, crowded)
        families = NativeStep(pool), NativeDense(pool), NativeQuantised(pool), NativeAttending(pool)
        return Kernels(True, *families, Joints(pool))
