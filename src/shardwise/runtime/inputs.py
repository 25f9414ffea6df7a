"""A step becomes a batch: plain numbers in, tensors out. It decides nothing.

The numbers go to the device as one copy into fixed buffers; masks and the like can be made of them there. Where `Buckets` pad,
the rows that only pad write to and read from the page SCRATCH, and the others see nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from shardwise.nn.batch import Batch, Rank
from shardwise.nn.reach import GroupBatch, Queries, Reach, Segment, Tables
from shardwise.runtime.limits import Buckets, Limits
from shardwise.runtime.recent import Recent
from shardwise.runtime.segments import divide
from shardwise.runtime.staging import Staging
from shardwise.sched.step import SCRATCH, Item, Step
from shardwise.spec.blocks import attentions
from shardwise.spec.layout import PAGE_TOKENS
from shardwise.spec.mla import MLA
from shardwise.spec.model import layer_blocks


@dataclass(frozen=True, slots=True)
class _Items:
    """A step's items as arrays: of each its count of tokens, and its first token's place in the batch and position; of each
    token the item that it belongs to, its position, and how many tokens its sequence has by now."""

    items: tuple[Item, ...]
    counts: np.ndarray
    offsets: np.ndarray
    starts: np.ndarray
    owner: np.ndarray
    positions: np.ndarray
    known: np.ndarray

    @staticmethod
    def of(items: tuple[Item, ...]) -> _Items:
        counts = np.array([item.count for item in items], np.int64)
        offsets = np.cumsum(counts) - counts
        starts = np.array([item.start for item in items], np.int64)
        owner = np.repeat(np.arange(len(items)), counts)
        positions = np.arange(len(owner)) - offsets[owner] + starts[owner]
        known = np.maximum(np.array([item.known for item in items], np.int64)[owner], positions + 1)
        return _Items(items, counts, offsets, starts, owner, positions, known)


@dataclass(frozen=True, slots=True)
class _Tables:
    """The pages of all items in one cache group, one item's after another's: how many each has, where its own begin, and the
    position at which they begin. Pages that an item has for later are left out: they hold what another sequence left there."""

    ids: np.ndarray
    counts: np.ndarray
    offsets: np.ndarray
    firsts: np.ndarray

    @staticmethod
    def of(items: tuple[Item, ...], group: int) -> _Tables:
        firsts = np.array([item.pages[group].first for item in items], np.int64)
        ends = np.array([item.start + item.count for item in items], np.int64)
        counts = -(-(ends - firsts) // PAGE_TOKENS)
        used = [item.pages[group].ids[:count] for item, count in zip(items, counts.tolist(), strict=True)]
        ids = np.fromiter(chain.from_iterable(used), np.int64, int(counts.sum()))
        return _Tables(ids, counts, np.cumsum(counts) - counts, firsts)

    def padded(self, chosen: np.ndarray, width: int) -> np.ndarray:
        """[chosen items, width]: the pages of each, then its own first one again. What another sequence left in a page could be
        a NaN, and that comes through a mask as 0 · NaN."""
        at = np.arange(width)
        own = np.where(at < self.counts[chosen, None], at, 0)
        return self.ids[self.offsets[chosen, None] + own]

    def pages(self, made: _Items) -> np.ndarray:
        """The page of each token."""
        return self.ids[self.offsets[made.owner] + (made.positions - self.firsts[made.owner]) // PAGE_TOKENS]


@dataclass(frozen=True, slots=True)
class _Staged:
    """One segment under way: which items it has, how many queries each is padded to; and on the device their counts of tokens,
    places in the batch and positions [S], and in each cache group the table [S, P] with the positions [S] where it begins."""

    part: np.ndarray
    width: int
    counts: torch.Tensor
    offsets: torch.Tensor
    starts: torch.Tensor
    tables: tuple[tuple[torch.Tensor, torch.Tensor], ...]


class Inputs:
    """The buffers of one rank, and what fills them. `recent` has the tokens of the steps that items name as their `source`."""

    def __init__(self, rank: Rank, limits: Limits, buckets: Buckets, recent: Recent) -> None:
        self._cache = rank.layout.cache
        self._limits, self._buckets, self._recent = limits, buckets, recent
        # Compiled attention reads pages where they are, but for those of latents.
        latent = any(isinstance(each, MLA) for _, block in layer_blocks(rank.layout.model) for each in attentions(block))
        self._gathers = latent or not rank.kernels.compiled
        groups, pad = len(self._cache), buckets.pad
        tokens = pad(limits.tokens) * (7 + 3 * groups)
        # Each segment is padded for itself, to less than twice its size.
        sequences = 2 * (limits.sequences + 3) * (3 + groups + sum(pad(count) for count in limits.pages))
        self._staging = Staging(tokens + sequences, rank.device)

    def batch(self, step: Step) -> tuple[torch.Tensor, Batch]:
        """(tokens [T], batch) of a step, on the rank's device. They hold until the next call."""
        self._check(step)
        put, pad = self._staging.put, self._buckets.pad
        self._staging.begin()
        made, tables = _Items.of(step.items), [_Tables.of(step.items, g) for g in range(len(self._cache))]
        size = pad(len(made.positions))
        ids, sources = put(self._ids(made), size), put(self._sources(made), size, fill=-1)
        positions, known = put(made.positions, size), put(made.known, size)
        places = [self._places(made, table, size) for table in tables]
        longest = np.max([table.counts for table in tables], 0)
        parts = divide(made.counts.tolist(), longest.tolist()) if self._gathers else []
        segments = [self._stage(made, tables, np.array(part)) for part in parts]
        flat = put(_flat(made, segments), size)
        rows = _rows(made)
        drawn, scored = put(rows[0], pad(len(rows[0]))), put(rows[1], len(rows[1]))
        self._staging.send()
        # What a step in flight draws has not reached the host: it is put in place here.
        recent = any(item.source is not None for item in step.items)
        tokens = torch.where(sources >= 0, self._recent.tokens[sources.clamp(min=0)], ids) if recent else ids
        built = tuple(self._segment(staged) for staged in segments)
        groups = tuple(GroupBatch(g, *places[g], flat, built, self._tables(made, table, g)) for g, table in enumerate(tables))
        return tokens, Batch(positions, known, flat, drawn, scored, built, groups)

    def _check(self, step: Step) -> None:
        """ValueError where the step is more than the buffers were made for."""
        most = self._limits
        for what, count, limit in (("tokens", step.tokens, most.tokens), ("items", len(step.items), most.sequences)):
            if not 0 < count <= limit:
                raise ValueError(f"step {step.number} has {count} {what}; this rank takes from 1 to {limit}")
        for g, limit in enumerate(most.pages):
            for item in step.items:
                held, needed = len(item.pages[g].ids), -(-(item.start + item.count - item.pages[g].first) // PAGE_TOKENS)
                if not needed <= held <= limit:
                    raise ValueError(
                        f"step {step.number}: sequence {item.sequence} has {held} pages in cache group {g}; it needs {needed}, "
                        f"and this rank takes up to {limit}"
                    )

    def _ids(self, made: _Items) -> np.ndarray:
        """The token ids [T] as far as they are known here."""
        tokens = chain.from_iterable(item.tokens if item.source is None else (0,) for item in made.items)
        return np.fromiter(tokens, np.int64, len(made.owner))

    def _sources(self, made: _Items) -> np.ndarray:
        """Where among the recent tokens each token [T] is to be found, or -1."""
        found = np.full(len(made.owner), -1, np.int64)
        for item, offset in zip(made.items, made.offsets, strict=True):
            if item.source is not None:
                found[offset] = self._recent.place(item.source, item.sequence)
        return found

    def _places(self, made: _Items, table: _Tables, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The slots, and the pages that are begun."""
        pages, places = table.pages(made), made.positions % PAGE_TOKENS
        begun = pages[places == 0]
        slots = self._staging.put(pages * PAGE_TOKENS + places, size, fill=SCRATCH * PAGE_TOKENS)
        most = int((-(-made.counts // PAGE_TOKENS)).sum())
        return slots, self._staging.put(begun, self._buckets.pad(len(begun), most), fill=SCRATCH)

    def _tables(self, made: _Items, table: _Tables, group: int) -> Tables:
        numbers = np.stack((made.offsets, made.counts, made.starts, table.firsts, table.offsets), 1)
        cache = self._cache[group]
        pages = torch.from_numpy(table.ids)
        return Tables(torch.from_numpy(numbers), pages, len(made.positions), cache.window, cache.chunked)

    def _stage(self, made: _Items, tables: Sequence[_Tables], part: np.ndarray) -> _Staged:
        put, pad = self._staging.put, self._buckets.pad
        size = pad(len(part))
        counts, offsets, starts = (put(values[part], size) for values in (made.counts, made.offsets, made.starts))
        placed = tuple(
            (put(table.padded(part, pad(int(table.counts[part].max()))), size, fill=SCRATCH), put(table.firsts[part], size))
            for table in tables
        )
        return _Staged(part, pad(int(made.counts[part].max())), counts, offsets, starts, placed)

    def _segment(self, staged: _Staged) -> Segment:
        """What the numbers mean once they are on the device."""
        queries = Queries(staged.counts, staged.offsets, staged.starts, staged.width)
        pairs = zip(staged.tables, self._cache, strict=True)
        return Segment(queries, tuple(Reach(*placed, queries, group.window, group.chunked) for placed, group in pairs))


def _flat(made: _Items, segments: Sequence[_Staged]) -> np.ndarray:
    """The place of each token [T] among the queries of all segments, padded as they are."""
    begins, base = np.zeros(len(made.items), np.int64), 0
    for staged in segments:
        begins[staged.part] = base + np.arange(len(staged.part)) * staged.width
        base += len(staged.counts) * staged.width
    return begins[made.owner] + np.arange(len(made.owner)) - made.offsets[made.owner]


def _rows(made: _Items) -> tuple[np.ndarray, np.ndarray]:
    """The places in the batch after which tokens are drawn, and before those the ones of `targets`; in the order of items."""
    drawn: list[int] = []
    scored: list[int] = []
    for item, end in zip(made.items, (made.offsets + made.counts).tolist(), strict=True):
        assert item.rows <= item.count, f"sequence {item.sequence} wants {item.rows} rows of {item.count} tokens"
        first = end - item.rows
        scored += range(first, first + len(item.targets))
        drawn += range(first + len(item.targets), end)
    return np.array(drawn, np.int64), np.array(scored, np.int64)
