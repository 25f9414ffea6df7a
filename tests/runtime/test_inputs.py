"""A step as tensors: what each sequence gets does not depend on its company, its pages, padding, or its cut into steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from shardwise.comm.solo import Solo
from shardwise.nn.batch import Batch, Rank
from shardwise.runtime.inputs import Inputs
from shardwise.runtime.limits import Buckets, Limits
from shardwise.runtime.recent import Recent
from shardwise.sched.step import SCRATCH, Item, Pages, Step
from shardwise.spec.layout import PAGE_TOKENS
from tests.checkpoints import FAMILIES
from tests.group import Group, Request, even, greedy, layout_of

Checkpoints = Callable[[str], Path]
EXACT = 2e-6
"""Matrices of other heights may be multiplied in another order: a few roundings of float32, relative to the largest logit."""

CPU = torch.device("cpu")
LIMITS = Limits(1000, 8, (80,))
SIZES = {"exact": Buckets(), "padded": Buckets.up_to(1000)}


def tokens(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 95, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= EXACT * b.abs().max())


# --- the numbers ------------------------------------------------------------------------------------------------------


@st.composite
def steps(draw: st.DrawFn, window: int | None) -> list[Item]:
    """Items with pages in any order, each from the page that its first query's window reaches back to, or from before it."""
    free = draw(st.permutations(range(1, 450)))
    items = []
    for number in range(draw(st.integers(1, 7))):
        start, length = draw(st.integers(0, 600)), draw(st.just(1) | st.integers(1, 100))
        reach = 0 if window is None else max(0, start - window + 1) // PAGE_TOKENS
        first = draw(st.integers(0, reach))
        count = -(-(start + length) // PAGE_TOKENS) - first
        later = draw(st.integers(0, 2))  # pages that it has, and does not use yet
        pages, free = Pages(first * PAGE_TOKENS, tuple(free[: count + later])), free[count + later :]
        drawn = (number,) if draw(st.booleans()) else ()
        targets = (0,) * draw(st.integers(0, length - len(drawn)))
        known = start + draw(st.sampled_from([0, length, length + 50]))
        items.append(Item(number, tuple(range(length)), start, known, (pages,), targets=targets, drawn=drawn))
    return items


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", ["llama", "mistral-window"])
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_every_number_by_the_plain_rule(name: str, sizes: str, data: st.DataObject) -> None:
    layout = layout_of(FAMILIES[name], even(1))
    window = layout.cache[0].window
    items = data.draw(steps(window))
    rank = Rank(layout, 0, Solo(), CPU, torch.float32, torch.float32)
    ids, batch = Inputs(rank, LIMITS, SIZES[sizes], Recent(8, CPU)).batch(Step(1, tuple(items)))
    group, count = batch.groups[0], sum(len(item.tokens) for item in items)
    assert ids[:count].tolist() == [token for item in items for token in item.tokens]
    places = [item.start + i for item in items for i in range(len(item.tokens))]
    assert batch.positions[:count].tolist() == places
    known = [item.known for item in items for _ in item.tokens]
    assert batch.known[:count].tolist() == [max(k, p + 1) for k, p in zip(known, places, strict=True)]
    queries = [(s, i, j) for s in batch.segments for i in range(s.rows.shape[0]) for j in range(s.rows.shape[1])]
    row, drawn, scored, begun = 0, [], [], []
    for item in items:
        pages = item.pages[0]
        for i in range(len(item.tokens)):
            position = item.start + i
            page = pages.ids[(position - pages.first) // PAGE_TOKENS]
            assert group.slots[row] == page * PAGE_TOKENS + position % PAGE_TOKENS
            begun += [page] if position % PAGE_TOKENS == 0 else []
            segment, s, q = queries[batch.flat[row]]
            assert segment.rows[s, q] == row
            reach = segment.reach[0]
            seen = [pages.first + j for j in reach.mask[s, 0, q].nonzero()[:, 0].tolist()]
            low = 0 if window is None else position - window + 1
            assert seen == [p for p in range(pages.first, position + 1) if p >= low]
            table = reach.table[s].tolist()
            used = pages.ids[: -(-(item.start + item.count - pages.first) // PAGE_TOKENS)]
            assert table[: len(used)] == list(used)
            assert set(table) == set(used), "nothing of another sequence, nor of a page that is not begun"
            row += 1
        first = row - item.rows
        scored += range(first, first + len(item.targets))
        drawn += range(first + len(item.targets), row)
    assert batch.scored.tolist() == scored and batch.drawn[: len(drawn)].tolist() == drawn
    assert group.begun[: len(begun)].tolist() == begun and set(group.begun[len(begun) :].tolist()) <= {SCRATCH}
    assert set(group.slots[count:].tolist()) <= {SCRATCH * PAGE_TOKENS}
    # A padded query sees something: a softmax over nothing has no value.
    assert all(segment.reach[0].mask.any(-1).all() for segment in batch.segments)
    if sizes == "exact":
        assert len(ids) == count and len(group.begun) == len(begun) and len(batch.drawn) == len(drawn)
        assert sum(len(segment.rows) for segment in batch.segments) == len(items)


def numbers(batch: Batch) -> list[torch.Tensor]:
    """Every tensor of a batch, in order."""
    reach = [x for segment in batch.segments for one in segment.reach for x in (one.table, one.mask)]
    groups = [x for group in batch.groups for x in (group.slots, group.begun)]
    fixed = [batch.positions, batch.known, batch.flat, batch.drawn, batch.scored]
    return [*fixed, *(segment.rows for segment in batch.segments), *reach, *groups]


def decodes(count: int, lengths: list[int]) -> Step:
    items = []
    for i in range(count):
        pages = tuple(1 + 80 * i + j for j in range(-(-lengths[i] // PAGE_TOKENS)))
        items.append(Item(i, (7,), lengths[i] - 1, lengths[i], (Pages(0, pages),), drawn=(i,)))
    return Step(1, tuple(items))


def test_steps_of_one_bucket_have_one_shape_and_one_place() -> None:
    """A captured graph is replayed at the addresses where it was captured."""
    rank = Rank(layout_of(FAMILIES["llama"], even(1)), 0, Solo(), CPU, torch.float32, torch.float32)
    inputs = Inputs(rank, LIMITS, SIZES["padded"], Recent(8, CPU))
    found = []
    for count, lengths in ((5, [33, 40, 48, 17, 1]), (6, [34, 33, 20, 33, 40, 41]), (5, [33] * 5)):
        tokens, batch = inputs.batch(decodes(count, lengths))
        found.append([(x.shape, x.dtype) for x in (tokens, *numbers(batch))])
        staged = (batch.positions, batch.known, batch.flat, batch.drawn, batch.groups[0].slots, batch.groups[0].begun)
        found[-1].append([x.data_ptr() for x in (*staged, batch.segments[0].reach[0].table)])
    assert found[0] == found[1] == found[2]
    _, exact = Inputs(rank, LIMITS, Buckets(), Recent(8, CPU)).batch(decodes(5, [33] * 5))
    assert len(exact.positions) == 5


def test_a_decode_is_not_padded_to_its_neighbours() -> None:
    """Seven decodes beside a chunk of 500 tokens, one of them far longer than the others."""
    rank = Rank(layout_of(FAMILIES["llama"], even(1)), 0, Solo(), CPU, torch.float32, torch.float32)
    step = decodes(7, [20, 30, 1200, 18, 40, 17, 16])
    chunk = Item(9, (5,) * 500, 0, 500, (Pages(0, tuple(range(900, 932))),))
    step = replace(step, items=(*step.items[:3], chunk, *step.items[3:]))
    _, batch = Inputs(rank, LIMITS, Buckets(), Recent(8, CPU)).batch(step)
    shapes = [(*segment.rows.shape, segment.reach[0].table.shape[1]) for segment in batch.segments]
    assert shapes == [(1, 1, 75), (6, 1, 3), (1, 500, 32)]


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (decodes(8, [1] * 8), r"step 1 has 8 items; this rank takes from 1 to 7"),
        (Step(3, ()), "step 3 has 0 tokens; this rank takes from 1 to 40"),
        (Step(3, (Item(0, (1,) * 41, 0, 41, (Pages(0, (1, 2, 3)),)),)), "step 3 has 41 tokens"),
        (decodes(1, [49]), "sequence 0 has 4 pages in cache group 0; it needs 4, and this rank takes up to 3"),
        (
            Step(3, (Item(0, (1,), 32, 33, (Pages(0, (1, 2)),)),)),
            "sequence 0 has 2 pages in cache group 0; it needs 3, and this rank takes up to 3",
        ),
    ],
)
def test_what_is_beyond_the_buffers_is_refused(step: Step, reason: str) -> None:
    rank = Rank(layout_of(FAMILIES["llama"], even(1)), 0, Solo(), CPU, torch.float32, torch.float32)
    with pytest.raises(ValueError, match=reason):
        Inputs(rank, Limits(40, 7, (3,)), Buckets(), Recent(8, CPU)).batch(step)


def test_buckets_are_powers_of_two_and_halfway() -> None:
    assert Buckets.up_to(100).sizes == (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
    assert [Buckets.up_to(100).pad(n) for n in (0, 1, 5, 33, 100)] == [0, 1, 6, 48, 128]
    assert Buckets.up_to(100).pad(0, 5) == 6 and Buckets().pad(0, 5) == 0 and Buckets().pad(33) == 33


# --- the logits -------------------------------------------------------------------------------------------------------


def started(group: Group, index: int, ids: list[int], computed: int) -> Request:
    """A sequence of which `computed` tokens are in the cache."""
    sequence = group.request(index)
    sequence.tokens[:] = ids
    if computed:
        group.logits(sequence.take(computed))
    return sequence


CASES = [(40, 0), (50, 20), (34, 33), (1, 0), (17, 16), (90, 89), (3, 0)]
"""Lengths of which so much is computed: prefills, the middle chunk of one, and decodes of several lengths."""


FORMS = ["llama", "mistral-window", "qwen2-window", "llama-dynamic", "phi3-longrope", "gpt2"]
FORMS += ["gemma3", "gpt-oss", "mixtral", "deepseek-v2-lite"]


@pytest.mark.parametrize("shares", [even(1), (3.0, 1.0, 1.0)], ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_company_and_padding_change_nothing(name: str, shares: tuple[float, ...], checkpoint: Checkpoints) -> None:
    """Prefill, the middle chunk of a prefill, and decode in one step: the logits of each are those it has alone."""
    folder = checkpoint(name)
    cases = [(tokens(length, seed), computed) for seed, (length, computed) in enumerate(CASES)]
    alone: list[torch.Tensor] = []
    for buckets in SIZES.values():
        with Group(layout_of(folder, shares), folder, sequences=len(cases), buckets=buckets) as group:
            if not alone:
                for i, (ids, computed) in enumerate(cases):
                    alone.append(group.logits(started(group, i, ids, computed).take(25)))
            together = [started(group, i, ids, computed) for i, (ids, computed) in enumerate(cases)]
            parts = group.logits(*(s.take(25) for s in together)).split([len(part) for part in alone])
            assert all(near(part, want) for part, want in zip(parts, alone, strict=True))


@pytest.mark.parametrize("buckets", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("name", ["llama", "qwen2-window", "deepseek-v2-lite", "mixtral"])
def test_what_is_in_the_scratch_page_is_seen_by_nobody(name: str, buckets: Buckets, checkpoint: Checkpoints) -> None:
    folder = checkpoint(name)
    with Group(layout_of(folder, even(2)), folder, sequences=3, buckets=buckets) as group:
        found = []
        for left in (0.0, torch.nan, torch.inf):
            for runner in group.runners:
                for layer in range(group.layout.model.layers):
                    for tensor in runner.cache.layer(layer)[0]:
                        tensor[SCRATCH] = left
            sequences = [started(group, i, tokens(10 + 9 * i, i), 3) for i in range(3)]
            first = group.logits(*(s.take(count) for s, count in zip(sequences, (1, 5, 24), strict=True)))
            found.append(torch.cat((first, group.logits(*(s.take(1) for s in sequences[:2])))))
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_the_order_of_pages_and_items_changes_no_bit(checkpoint: Checkpoints) -> None:
    folder = checkpoint("llama")
    with Group(layout_of(folder, even(2)), folder, sequences=2) as group:
        ordered = [Request(group.layout, i, (tuple(range(1 + i * 8, 9 + i * 8)),)) for i in range(2)]
        found = []
        for pair in (ordered, [group.request(0), group.request(1)], [group.request(1), group.request(0)]):
            for sequence, seed in zip(pair, (1, 2), strict=True):
                sequence.tokens[:] = tokens(40, seed)
            found.append(group.logits(*(s.take() for s in pair)))
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_chunks_of_any_size(checkpoint: Checkpoints) -> None:
    folder, ids = checkpoint("qwen2-window"), tokens(50)
    with Group(layout_of(folder, (2.0, 1.0, 1.0)), folder) as group:
        sequence = group.request()
        sequence.tokens[:] = ids
        want = group.logits(sequence.take())
        for size in (1, 15, 16, 17, 49):
            sequence, parts = group.request(), []
            sequence.tokens[:] = ids
            while sequence.computed < len(ids):
                parts.append(group.logits(sequence.take(size)))
            assert near(torch.cat(parts), want), size


def test_rows_are_the_last_ones(checkpoint: Checkpoints) -> None:
    """In the order of the items: those of targets, then those drawn after, of which a step draws."""
    folder = checkpoint("llama")
    with Group(layout_of(folder, even(2)), folder, sequences=3) as group:
        sequences = [group.request(i) for i in range(3)]
        for i, sequence in enumerate(sequences):
            sequence.tokens[:] = tokens(10 + i, i)
        one, two, three = (sequence.take(wants=0) for sequence in sequences)
        whole = group.logits(*(replace(item, targets=(0,) * item.count) for item in (one, two, three)))
        some = group.logits(replace(one, targets=(1, 2, 3)), two, replace(three, targets=(4,), drawn=(2,)))
        assert near(some, torch.cat((whole[7:10], whole[-2:])))
        step = group.step(one, replace(two, drawn=(1,)), replace(three, drawn=(2,), targets=(5, 6)))
        first, second = group.results(step, greedy(1), greedy(2))
        assert [first.tokens[0].token, second.tokens[0].token] == [int(whole[20].argmax()), int(whole[-1].argmax())]
        assert first.scores == () and [score.token for score in second.scores] == [5, 6]
        wanted = whole.double().log_softmax(-1)
        found = [score.logprob for score in second.scores]
        assert found == pytest.approx([wanted[-3, 5].item(), wanted[-2, 6].item()], abs=1e-4)
        assert group.results(group.step(one)) == ()


@pytest.mark.parametrize("name", ["llama", "mistral-window"])
def test_a_request_that_overflows_harms_no_other(name: str, checkpoint: Checkpoints, tmp_path: Path) -> None:
    """One token's vector is NaN: its request fails, its companions get the bits that they get beside a healthy request."""
    folder, bad = checkpoint(name), 99
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][bad] = torch.nan
    save_file(weights, tmp_path / "model.safetensors")
    layout = layout_of(folder, (2.0, 1.0))
    for buckets in SIZES.values():
        found = []
        for token in (7, bad):
            with Group(layout, tmp_path, sequences=3, buckets=buckets) as group:
                ids = [tokens(40, 1), [*tokens(20, 2), token, *tokens(30, 3)], tokens(5, 4)]
                sequences = [started(group, i, one, 0) for i, one in enumerate(ids)]
                results = group.results(group.step(*(s.take(33, drawn=True) for s in sequences)), *map(greedy, range(3)))
                assert [r.error is None for r in results] == [True, token != bad, True]
                for sequence in sequences:
                    sequence.tokens.append(5)
                second = group.logits(*(s.take() for s in sequences))
                rows = [i for i in range(len(second)) if not 8 <= i < 27]
                found.append(([results[0], results[2]], second[rows]))
        assert found[0][0] == found[1][0]
        assert torch.isfinite(found[1][1]).all() and torch.equal(found[0][1], found[1][1])
