"""A rank's KV cache: one arena of pages for every group of layers, allocated once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shardwise.nn.batch import Rank
from shardwise.spec.axes import BITS
from shardwise.spec.layout import PAGE_TOKENS


class PagedCache:
    """Keys and values of this rank's KV heads. `pages[g]` pages of PAGE_TOKENS tokens for each group g."""

    def __init__(self, rank: Rank, pages: Sequence[int]) -> None:
        layout = rank.layout
        # Not cleared here: a page is when its first token comes (`GroupBatch.begun`), so a CPU gives memory only as it is used.
        self.arena = torch.empty(layout.kv_bytes(rank.index, pages), dtype=torch.uint8, device=rank.device)
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor, int]] = {}
        stage, offset = layout.stages[rank.at.pp], 0
        for index, (group, count) in enumerate(zip(layout.cache, pages, strict=True)):
            heads = len(layout.span(group.kv, rank.at)) // group.dim
            shape = (count, PAGE_TOKENS, heads, group.dim)
            size = count * PAGE_TOKENS * heads * group.dim * BITS[layout.kv_dtype] // 8
            for layer in (i for i in group.layers if i in stage):
                keys, values = (
                    self.arena[start : start + size].view(rank.kv_dtype).view(shape) for start in (offset, offset + size)
                )
                self._layers[layer] = (keys, values, index)
                offset += 2 * size

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """(keys, values, cache group) of a layer; keys and values are [pages, PAGE_TOKENS, own kv heads, dim]."""
        return self._layers[index]
