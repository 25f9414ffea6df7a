"""Attention over pages, compiled, against torch: every path that this CPU has, any shape, any kind of cache."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.nn.kernels.attention import Heads, NativeAttending, TorchAttending
from shardwise.nn.kernels.kept import as_floats, keep
from shardwise.nn.kernels.pool import Pool
from shardwise.nn.kernels.turning import Turn
from shardwise.nn.reach import GroupBatch, Queries, Reach, Segment, Tables
from shardwise.spec.layout import PAGE_TOKENS, SCALE_BYTES
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
        tuple(spans), tuple(readers), kv_heads, draw(st.sampled_from([16, 64, 96]) | st.integers(1, 150)),
        draw(st.sampled_from(KINDS)), window, window is not None and draw(st.booleans()),
        draw(st.none() | st.just(30.0)), draw(st.booleans()), draw(st.integers(0, 2**32)),
    )  # fmt: skip


@each_path
@settings(deadline=None, max_examples=40)
@given(case=cases(), threads=st.integers(1, 3))
def test_it_reads_as_torch_does(case: Case, threads: int) -> None:
    torch.testing.assert_close(native(case, threads), wanted(case), rtol=1e-5, atol=1e-5)


@each_path
@settings(deadline=None, max_examples=15)
@given(case=cases(), data=st.data())
def test_a_row_does_not_know_the_others(case: Case, data: st.DataObject) -> None:
    """The same bits alone as in a prompt, by one thread as by several, and whatever the table has before a window."""
    whole, queries, pages, batch = native(case), case.queries(), case.pages(), case.batch()
    assert torch.equal(native(case, 3), whole)
    index = data.draw(st.integers(0, len(case.spans) - 1))
    row, new, start, first, begin = batch.tables.sequences[index].tolist()
    place = data.draw(st.integers(0, new - 1))
    low = max(first, 0 if case.window is None else case.first(start + place))
    one = torch.tensor([[0, 1, start + place, low, begin + (low - first) // PAGE_TOKENS]])
    alone = replace(batch, tables=replace(batch.tables, sequences=one, tokens=1))
    found = NativeAttending(Pool(2)).read(queries[row + place][None], pages, alone, case.heads)
    assert torch.equal(found[0], whole[row + place])


@each_path
@settings(deadline=None, max_examples=30)
@given(
    tokens=st.integers(0, 40), heads=st.integers(1, 5), kv_heads=st.integers(1, 3), dim=st.integers(1, 80),
    kind=st.sampled_from(KINDS), halves=st.booleans(), data=st.data(), threads=st.integers(1, 3), wide=st.floats(1e-3, 1e3),
)  # fmt: skip
def test_it_writes_as_torch_does(
    tokens: int, heads: int, kv_heads: int, dim: int, kind: torch.dtype, halves: bool, data: st.DataObject, threads: int,
    wide: float,
) -> None:  # fmt: skip
    """Turned in part, wholly or not at all; each token to its place, and nothing to any other."""
    make = torch.Generator().manual_seed(tokens * 1000 + dim)
    q, k, v = (torch.randn(tokens, count, dim, generator=make) * wide for count in (heads, kv_heads, kv_heads))
    if tokens and kind != torch.int8:
        v[0, 0, 0], v[-1, -1, -1] = torch.nan, torch.inf
    size = 2 * data.draw(st.integers(0, dim // 2))
    angles = torch.randn(tokens, 1, size, generator=make) * 5
    turn = Turn((angles.cos(), angles.sin()), halves) if size else None
    slots = torch.randperm(64, generator=make)[:tokens] + PAGE_TOKENS
    none = torch.empty(0, dtype=torch.int64)
    batch = GroupBatch(0, slots, none, none, (), Tables(none.view(0, 5), none, tokens, None, False))
    before = keep(torch.randn(5, PAGE_TOKENS, kv_heads, dim, generator=make), kind)
    found, want = (tuple(before.clone() for _ in range(2)) for _ in range(2))
    turned = TorchAttending().write(q.clone(), k.clone(), v.clone(), turn, want, batch)
    own = NativeAttending(Pool(threads)).write(q.clone(), k.clone(), v.clone(), turn, found, batch)
    torch.testing.assert_close(own, turned, rtol=1e-6, atol=1e-5 * wide)
    step = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.int8: 1 / 120}[kind]
    for a, b in zip(found, want, strict=True):
        a, b = as_floats(a, torch.float32), as_floats(b, torch.float32)
        peak = b.nan_to_num(0, 0, 0).abs().max().item()
        torch.testing.assert_close(a, b, rtol=step, atol=step * peak if kind == torch.int8 else 1e-5 * wide, equal_nan=True)
        assert turn is not None or torch.equal(a.nan_to_num(7), b.nan_to_num(7)), "what is not turned is kept to the bit"


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=70))
def test_an_int8_cache_is_off_by_half_a_step(numbers: list[float]) -> None:
    """A step is a 127th of the greatest number of a token and head; what is smaller than any use is 0."""
    x = torch.tensor(numbers)
    kept = keep(x[None], torch.int8)
    assert kept.shape == (1, len(x) + SCALE_BYTES) and kept.dtype == torch.int8
    step = x.abs().max() / 127
    assert ((as_floats(kept, torch.float32)[0] - x).abs() <= step * 0.5001 + 1e-30).all()
    again = keep(as_floats(kept, torch.float32), torch.int8)
    assert (as_floats(again, torch.float32) - as_floats(kept, torch.float32)).abs().max() <= step * 1e-5 + 1e-30


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_an_int8_head_with_a_number_that_is_none_is_none(bad: float) -> None:
    x = torch.ones(2, 5)
    x[0, 3] = bad
    found = as_floats(keep(x, torch.int8), torch.float32)
    assert found[0].isnan().all() and torch.allclose(found[1], x[1])


@pytest.mark.parametrize("kind", KINDS, ids=str)
@each_path
def test_numbers_that_are_none_stay_in_their_sequence(kind: torch.dtype) -> None:
    case = Case(((30, 20), (600, 3), (9, 1)), (0, 0, 1), 2, 64, kind)
    clean, queries = native(case), case.queries()
    queries[5, 1, 7], queries[21, 0, 0] = torch.nan, torch.inf
    found = NativeAttending(Pool(2)).read(queries, case.pages(), case.batch(), case.heads)
    spoilt = torch.zeros(24, 3, dtype=torch.bool)
    spoilt[5, 1] = spoilt[21, 0] = True
    assert found[spoilt].isnan().all() and torch.equal(found[~spoilt], clean[~spoilt])


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@each_path
def test_what_is_infinite_counts_as_in_torch(kind: torch.dtype) -> None:
    """A key that some queries see nothing but, and others nothing of; a value that all take a part of."""
    case = Case(((0, 90),), (0, 0, 1), 2, 64, kind)
    (table,), (keys, values) = case.tables(), case.pages()
    keys[table[0], 0, 0, 7], values[table[0], 0, 1, 40] = torch.inf, -torch.inf
    attending, q = NativeAttending(Pool(1)), case.queries()
    found = attending.read(q, (keys, values), case.batch(), case.heads)
    keys, values = keys.nan_to_num(0, torch.inf, -torch.inf), values.nan_to_num(0, torch.inf, -torch.inf)
    wanted = TorchAttending().read(q, (keys, values), case.batch(), case.heads)
    assert wanted.isnan().any() and wanted.isinf().any()
    # The first sees nothing else: what of nothing is kept, torch leaves to whoever computes it.
    torch.testing.assert_close(found[1:], wanted[1:], rtol=1e-5, atol=1e-5, equal_nan=True)
    # And by the bits that a query alone has.
    batch, last = case.batch(), torch.tensor([[0, 1, 89, 0, 0]])
    alone = replace(batch, tables=replace(batch.tables, sequences=last, tokens=1))
    again = attending.read(q[89:], (keys, values), alone, case.heads)
    torch.testing.assert_close(again[0], found[89], rtol=0, atol=0, equal_nan=True)


@each_path
@settings(deadline=None, max_examples=15)
@given(given=st.lists(cases(), min_size=1, max_size=2), halves=st.booleans(), threads=st.integers(1, 3))
def test_one_call_writes_and_reads(given: list[Case], halves: bool, threads: int) -> None:
    """Layers in turn, step after step: the bits of `write` and then `read`, whatever was asked before."""
    attending, apart = NativeAttending(Pool(threads)), NativeAttending(Pool(threads))
    layers = [(case.heads, case.pages(), tuple(part.clone() for part in case.pages())) for case in given]
    for number in range(2):
        for case, (heads, pages, others) in zip(given, layers, strict=True):
            batch, q, make = case.batch(), case.queries() + number, case.chance()
            k, v = torch.randn(2, len(q), case.kv_heads, case.dim, generator=make)
            angles = torch.randn(len(q), 1, case.dim // 2 * 2, generator=make)
            turn = Turn((angles.cos(), angles.sin()), halves) if number else None
            found = attending.attend(q.clone(), k.clone(), v, turn, pages, batch, heads)
            turned = apart.write(q.clone(), k.clone(), v, turn, others, batch)
            assert torch.equal(found, apart.read(turned, others, batch, heads))
            for a, b in zip(pages, others, strict=True):
                assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))
