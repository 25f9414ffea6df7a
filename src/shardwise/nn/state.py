"""What flows beside the hidden states through one forward: the batch, the cache and the angles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from shardwise.nn.batch import Batch
from shardwise.nn.rope import Angles
from shardwise.spec import blocks


class Cache(Protocol):
    """Where keys and values live."""

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """(keys, values, cache group) of a layer; keys and values are [pages, PAGE_TOKENS, own kv heads, dim]."""
        ...


@dataclass(frozen=True, slots=True)
class State:
    """One forward's company. `angles` has an entry for each distinct rope of the model."""

    batch: Batch
    cache: Cache
    angles: Mapping[blocks.Rope, Angles]
