"""A rank's KV cache: one arena of pages for every group of layers, allocated once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import prod

import torch

from shardwise.nn.batch import Rank
from shardwise.spec.axes import BITS
from shardwise.spec.layout import PAGE_TOKENS


class PagedCache:
    """What this rank's layers keep of tokens: `pages[g]` pages of PAGE_TOKENS tokens for each group g. `room`: memory of just
    that size, if there is some."""

    def __init__(self, rank: Rank, pages: Sequence[int], room: torch.Tensor | None = None) -> None:
        layout = rank.layout
        # Not cleared here: a page is when its first token comes (`GroupBatch.begun`), so a CPU gives memory only as it is used.
        size = layout.kv_bytes(rank.index, pages)
        self.arena = torch.empty(size, dtype=torch.uint8, device=rank.device) if room is None else room
        assert self.arena.nbytes == size, "room of another size"
        self._layers: dict[int, tuple[tuple[torch.Tensor, ...], int]] = {}
        stage, start = layout.stages[rank.at.pp], 0
        for index, (group, count) in enumerate(zip(layout.cache, pages, strict=True)):
            shapes = [(count, PAGE_TOKENS, *one) for one in layout.kept(group, rank.at)]
            ends = list(accumulate((prod(shape) * BITS[layout.kv_dtype] // 8 for shape in shapes), initial=0))
            for layer in (i for i in group.layers if i in stage):
                tensors = (
                    self.arena[start + low : start + high].view(rank.kv_dtype).view(shape)
                    for (low, high), shape in zip(pairwise(ends), shapes, strict=True)
                )
                self._layers[layer] = (tuple(tensors), index)
                start += ends[-1]

    def layer(self, index: int) -> tuple[tuple[torch.Tensor, ...], int]:
        """(tensors, cache group) of a layer. The tensors are what its attention keeps of a token, keys and values or one
        latent, each [pages, PAGE_TOKENS, own heads of it, dim]."""
        return self._layers[index]

    def copy(self, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Page sources[i] of `group` becomes page targets[i], in every layer; all are read before any is written.

        Targets are distinct: ValueError where they are not, or where there is not one for each source.
        """
        if len(sources) != len(targets) or len(set(targets)) != len(targets):
            raise ValueError(f"pages {list(sources)} to {list(targets)}: give one target for each source, and none twice")
        # Made once for all layers: on a GPU this is the only trip from the host.
        pages = torch.tensor([list(sources), list(targets)], dtype=torch.int64, device=self.arena.device)
        for tensors, index in self._layers.values():
            if index == group:
                for tensor in tensors:
                    tensor[pages[1]] = tensor[pages[0]]
