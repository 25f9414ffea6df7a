"""What flows beside the hidden states through one forward: the batch, the cache and the angles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from shardwise.nn.batch import Batch
from shardwise.nn.kernels.turning import Angles
from shardwise.spec import blocks


class Cache(Protocol):
    """Where the pages live."""

    def layer(self, index: int) -> tuple[tuple[torch.Tensor, ...], int]:
        """(tensors, cache group) of a layer. The tensors are what its attention keeps of a token, keys and values or one
        latent, each [pages, PAGE_TOKENS, own heads of it, dim]."""
        ...


@dataclass(frozen=True, slots=True)
class State:
    """One forward's company. `angles` has an entry for each distinct rope of the model."""

    batch: Batch
    cache: Cache
    angles: Mapping[blocks.Rope, Angles]
