"""Attention over pages, compiled, against torch: every path that this CPU has, any shape, any kind of cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.nn.kernels.attention import Heads, NativeAttending, TorchAttending
from shardwise.nn.kernels.kept import keep
from shardwise.nn.kernels.pool import Pool
from shardwise.nn.reach import GroupBatch, Queries, Reach, Segment, Tables
from shardwise.spec.layout import PAGE_TOKENS
from tests.nn.kernels.paths import each_path, needs_compiled

pytestmark = needs_compiled

KINDS = [torch.float32, torch.bfloat16, torch.float16, torch.int8]


@dataclass(frozen=True)
class Case:
    """Sequences of (first position, new tokens), and the heads that read them."""

    spans: tuple[tuple[int, int], ...]
    readers: tuple[int, ...]
    kv_heads: int
    dim: int
    kind: torch.dtype
    window: int | None = None
    chunked: bool = False
    softcap: float | None = None
    sinks: bool = False
    seed: int = 0

    @property
    def heads(self) -> Heads:
        sinks = torch.randn(len(self.readers), generator=self.chance()) if self.sinks else None
        return Heads(torch.tensor(self.readers), self.kv_heads, self.dim**-0.5, self.softcap, sinks, grouped=False)

    def chance(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def pages(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all sequences, each in pages of its own; what no sequence has written is NaN, but for int8."""
        count = 1 + sum(self.held(*span) for span in self.spans)
        shape = (count, PAGE_TOKENS, self.kv_heads, self.dim)
        make = self.chance()
        found = tuple(keep(torch.randn(shape, generator=make), self.kind) for _ in range(2))
        for pages in found:
            for (start, new), table in zip(self.spans, self.tables(), strict=True):
                over = (start + new - self.first(start)) % PAGE_TOKENS
                if over and pages.dtype != torch.int8:
                    pages[table[-1], over:] = torch.nan
        return found[0], found[1]

    def first(self, start: int) -> int:
        if self.window is None:
            return 0
        seen = start // self.window * self.window if self.chunked else max(0, start - self.window + 1)
        return seen // PAGE_TOKENS * PAGE_TOKENS

    def held(self, start: int, new: int) -> int:
        return -(-(start + new - self.first(start)) // PAGE_TOKENS)

    def tables(self) -> list[list[int]]:
        counts = [self.held(*span) for span in self.spans]
        mixed = (1 + torch.randperm(sum(counts), generator=self.chance())).tolist()
        return [mixed[sum(counts[:i]) : sum(counts[: i + 1])] for i in range(len(counts))]

    def batch(self) -> GroupBatch:
        """Each sequence in a segment of its own."""
        rows, segments, slots, row = [], [], [], 0
        tables = self.tables()
        for (start, new), table in zip(self.spans, tables, strict=True):
            first = self.first(start)
            rows.append([row, new, start, first, sum(map(len, tables[: len(rows)]))])
            queries = Queries(torch.tensor([new]), torch.tensor([row]), torch.tensor([start]), new)
            reach = Reach(torch.tensor([table]), torch.tensor([first]), queries, self.window, self.chunked)
            segments.append(Segment(queries, (reach,)))
            for position in range(start, start + new):
                slots.append(table[(position - first) // PAGE_TOKENS] * PAGE_TOKENS + position % PAGE_TOKENS)
            row += new
        ids = torch.tensor([page for table in tables for page in table])
        plain = Tables(torch.tensor(rows), ids, row, self.window, self.chunked)
        none = torch.empty(0, dtype=torch.int64)
        return GroupBatch(0, torch.tensor(slots), none, torch.arange(row), tuple(segments), plain)

    def queries(self) -> torch.Tensor:
        return torch.randn(sum(new for _, new in self.spans), len(self.readers), self.dim, generator=self.chance()) * 2


def wanted(case: Case) -> torch.Tensor:
    """What torch says of the case, with zeros where nothing was written, so that its masks can hide it."""
    keys, values = (pages.nan_to_num(0.0) if pages.is_floating_point() else pages for pages in case.pages())
    return TorchAttending().read(case.queries(), (keys, values), case.batch(), case.heads)


def native(case: Case, threads: int = 1) -> torch.Tensor:
    return NativeAttending(Pool(threads)).read(case.queries(), case.pages(), case.batch(), case.heads)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kv_heads = draw(st.integers(1, 3))
    readers = sorted(draw(st.lists(st.integers(0, kv_heads - 1), min_size=1, max_size=9)))
    starts = st.integers(0, 100) | st.integers(400, 1200)
    spans = draw(st.lists(st.tuples(starts, st.just(1) | st.integers(1, 70)), min_size=1, max_size=4))
    window = draw(st.none() | st.integers(1, 90) | st.integers(500, 600))
    return Case(
        tuple(spans), tuple(readers), kv_heads, draw(st.sampled_from([16, 64]) | st.integers(1, 150)),
        draw(st.sampled_from(KINDS)), window, window is not None and draw(st.booleans()),
        draw(st.none() | st.just(30.0)), draw(st.booleans()), draw(st.integers(0, 2**32)),
    )  # fmt: skip


@each_path
@settings(deadline=None, max_examples=40)
@given(case=cases(), threads=st.integers(1, 3))
def test_it_reads_as_torch_does(case: Case, threads: int) -> None:
    torch.testing.assert_close(native(case, threads), wanted(case), rtol=1e-5, atol=1e-5)
