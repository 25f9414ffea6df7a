"""A step becomes a batch: plain numbers in, tensors out. It decides nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from shardwise.nn.batch import Batch, GroupBatch, Rank
from shardwise.sched.step import Item, Step
from shardwise.spec.layout import PAGE_TOKENS, CacheGroup

ToTensor = Callable[[np.ndarray], torch.Tensor]


def batch(step: Step, rank: Rank) -> tuple[torch.Tensor, Batch]:
    """(tokens [T], batch) of a step, on the rank's device."""
    items = step.items
    lengths = [len(item.tokens) for item in items]
    ends = np.cumsum(lengths)
    longest = max(lengths)
    rows = np.zeros((len(items), longest), np.int64)
    flat = np.empty(sum(lengths), np.int64)
    for s, (end, length) in enumerate(zip(ends, lengths, strict=True)):
        rows[s, :length] = np.arange(end - length, end)
        flat[end - length : end] = s * longest + np.arange(length)

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(rank.device)

    tokens = np.concatenate([np.asarray(item.tokens, np.int64) for item in items])
    positions = np.concatenate([np.arange(item.start, item.start + len(item.tokens)) for item in items])
    known = np.repeat(np.asarray([item.known for item in items], np.int64), lengths)
    sampled = np.concatenate([np.arange(end - item.rows, end) for item, end in zip(items, ends, strict=True)])
    groups = tuple(_group(items, g, group, longest, tensor) for g, group in enumerate(rank.layout.cache))
    return tensor(tokens), Batch(tensor(positions), tensor(known), tensor(rows), tensor(flat), tensor(sampled), groups)


def _group(items: tuple[Item, ...], g: int, group: CacheGroup, longest: int, tensor: ToTensor) -> GroupBatch:
    """The slots, page tables and mask of cache group number `g`."""
    most = max(len(item.pages[g].ids) for item in items)
    table = np.zeros((len(items), most), np.int64)
    first = np.empty((len(items), 1, 1), np.int64)
    queries = np.empty((len(items), longest, 1), np.int64)
    slots = []
    begun: list[int] = []
    for s, item in enumerate(items):
        pages = item.pages[g]
        # Padded with its own first page: no sequence ever touches what another one wrote.
        table[s] = pages.ids[0]
        table[s, : len(pages.ids)] = pages.ids
        first[s] = pages.first
        places = np.arange(item.start, item.start + len(item.tokens)) - pages.first
        slots.append(table[s][places // PAGE_TOKENS] * PAGE_TOKENS + places % PAGE_TOKENS)
        begun.extend(table[s][places[places % PAGE_TOKENS == 0] // PAGE_TOKENS])
        # A padded query looks from the first token's place: it must see something, or its softmax would divide by zero.
        queries[s, :, 0] = item.start
        queries[s, : len(item.tokens), 0] += np.arange(len(item.tokens))
    keys = first + np.arange(most * PAGE_TOKENS)
    mask = keys <= queries
    if group.window is not None:
        mask &= keys >= queries // group.window * group.window if group.chunked else keys > queries - group.window
    return GroupBatch(tensor(np.concatenate(slots)), tensor(np.asarray(begun, np.int64)), tensor(table), tensor(mask[:, None]))
