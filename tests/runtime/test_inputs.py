"""A step as tensors: what each sequence gets does not depend on its company, its pages, or how it is cut into steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from shardwise.comm.solo import Solo
from shardwise.nn.batch import Rank
from shardwise.runtime import inputs
from shardwise.sched.step import Item, Pages, Step
from shardwise.spec.layout import PAGE_TOKENS
from tests.checkpoints import FAMILIES
from tests.group import GREEDY, Group, Request, even, layout_of

Checkpoints = Callable[[str], Path]
EXACT = 2e-6
"""Matrices of other heights may be multiplied in another order: a few roundings of float32, relative to the largest logit."""


def tokens(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 95, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= EXACT * b.abs().max())


# --- the numbers ------------------------------------------------------------------------------------------------------


@st.composite
def steps(draw: st.DrawFn, window: int | None) -> list[Item]:
    """Items with pages in any order, each from the page that its first query's window reaches back to, or from before it."""
    free = draw(st.permutations(range(64)))
    items = []
    for number in range(draw(st.integers(1, 5))):
        start, length = draw(st.integers(0, 60)), draw(st.integers(1, 40))
        reach = 0 if window is None else max(0, start - window + 1) // PAGE_TOKENS
        first = draw(st.integers(0, reach))
        count = -(-(start + length) // PAGE_TOKENS) - first
        pages, free = Pages(first * PAGE_TOKENS, tuple(free[:count])), free[count:]
        wants = draw(st.integers(0, length))
        items.append(
            Item(number, tuple(range(length)), start, start + length, (pages,), draw(st.sampled_from([None, GREEDY])), wants)
        )
    return items


@pytest.mark.parametrize("name", ["llama", "mistral-window"])
@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_every_number_by_the_plain_rule(name: str, data: st.DataObject) -> None:
    layout = layout_of(FAMILIES[name], even(1))
    window = layout.cache[0].window
    items = data.draw(steps(window))
    rank = Rank(layout, 0, Solo(), torch.device("cpu"), torch.float32, torch.float32)
    ids, batch = inputs.batch(Step(1, tuple(items)), rank)
    group = batch.groups[0]
    assert ids.tolist() == [token for item in items for token in item.tokens]
    assert batch.positions.tolist() == [item.start + i for item in items for i in range(len(item.tokens))]
    assert batch.known.tolist() == [item.known for item in items for _ in item.tokens]
    row, sampled, begun = 0, [], []
    for s, item in enumerate(items):
        pages = item.pages[0]
        for i in range(len(item.tokens)):
            position = item.start + i
            page = pages.ids[(position - pages.first) // PAGE_TOKENS]
            assert group.slots[row] == page * PAGE_TOKENS + position % PAGE_TOKENS
            begun += [page] if position % PAGE_TOKENS == 0 else []
            assert batch.rows[s, i] == row and batch.flat[row] == s * batch.rows.shape[1] + i
            seen = [pages.first + j for j in range(len(pages.ids) * PAGE_TOKENS) if group.mask[s, 0, i, j]]
            low = 0 if window is None else position - window + 1
            assert seen == [p for p in range(pages.first, position + 1) if p >= low]
            assert not group.mask[s, 0, i, len(pages.ids) * PAGE_TOKENS :].any()
            row += 1
        assert group.table[s, : len(pages.ids)].tolist() == list(pages.ids)
        assert set(group.table[s].tolist()) == set(pages.ids), "nothing of another sequence"
        wanted = max(item.wants, 1 if item.draw else 0)
        sampled += list(range(row - wanted, row))
    assert batch.sampled.tolist() == sampled
    assert group.begun.tolist() == begun
    # A padded query sees something: a softmax over nothing has no value.
    assert group.mask.any(-1).all()


# --- the logits -------------------------------------------------------------------------------------------------------


def started(group: Group, index: int, ids: list[int], computed: int) -> Request:
    """A sequence of which `computed` tokens are in the cache."""
    sequence = group.request(index)
    sequence.tokens[:] = ids
    if computed:
        group.logits(sequence.take(computed))
    return sequence


@pytest.mark.parametrize("shares", [even(1), (3.0, 1.0, 1.0)], ids=str)
@pytest.mark.parametrize("name", ["llama", "mistral-window", "qwen2-window", "llama-dynamic", "phi3-longrope", "gpt2"])
def test_company_changes_nothing(name: str, shares: tuple[float, ...], checkpoint: Checkpoints) -> None:
    """Prefill, the middle chunk of a prefill, and decode in one step: the logits of each are those it has alone."""
    folder = checkpoint(name)
    cases = [(tokens(40, 1), 0), (tokens(50, 2), 20), (tokens(34, 3), 33), (tokens(1, 4), 0), (tokens(17, 5), 16)]
    with Group(layout_of(folder, shares), folder, sequences=len(cases)) as group:
        alone = []
        for i, (ids, computed) in enumerate(cases):
            alone.append(group.logits(started(group, i, ids, computed).take(25)))
        together = [started(group, i, ids, computed) for i, (ids, computed) in enumerate(cases)]
        parts = group.logits(*(s.take(25) for s in together)).split([len(part) for part in alone])
        assert all(near(part, want) for part, want in zip(parts, alone, strict=True))


def test_the_order_of_pages_and_items_changes_no_bit(checkpoint: Checkpoints) -> None:
    folder = checkpoint("llama")
    with Group(layout_of(folder, even(2)), folder, sequences=2) as group:
        ordered = [Request(group.layout, i, (tuple(range(i * 8, i * 8 + 8)),)) for i in range(2)]
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


def test_wants_are_the_last_rows(checkpoint: Checkpoints) -> None:
    """In the order of the items; a draw wants its last row too, and a step draws from that row alone."""
    folder = checkpoint("llama")
    with Group(layout_of(folder, even(2)), folder, sequences=3) as group:
        sequences = [group.request(i) for i in range(3)]
        for i, sequence in enumerate(sequences):
            sequence.tokens[:] = tokens(10 + i, i)
        one, two, three = (sequence.take() for sequence in sequences)
        whole = group.logits(one, two, three)
        some = group.logits(
            Item(**fields(one, wants=3)), Item(**fields(two, wants=0)), Item(**fields(three, wants=0, draw=GREEDY))
        )
        assert near(some, torch.cat((whole[7:10], whole[-1:])))
        step = group.step(one, Item(**fields(two, draw=GREEDY)), Item(**fields(three, wants=2, draw=GREEDY)))
        results, other = group.each(lambda runner: runner.step(step))
        assert [r.chosen.token for r in results if r.chosen] == [int(whole[20].argmax()), int(whole[-1].argmax())]
        assert other == ()
        nothing = group.step(Item(**fields(one, wants=0)))
        assert group.each(lambda runner: runner.step(nothing)) == [(), ()]


def fields(item: Item, **changes: object) -> dict[str, object]:
    names = ("request", "tokens", "start", "known", "pages", "draw", "wants")
    return {name: getattr(item, name) for name in names} | changes


@pytest.mark.parametrize("name", ["llama", "mistral-window"])
def test_a_request_that_overflows_harms_no_other(name: str, checkpoint: Checkpoints, tmp_path: Path) -> None:
    """One token's vector is NaN: its request fails, its companions get the bits that they get beside a healthy request."""
    folder, bad = checkpoint(name), 99
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][bad] = torch.nan
    save_file(weights, tmp_path / "model.safetensors")
    layout = layout_of(folder, (2.0, 1.0))
    found = []
    for token in (7, bad):
        with Group(layout, tmp_path, sequences=3) as group:
            ids = [tokens(40, 1), [*tokens(20, 2), token, *tokens(30, 3)], tokens(5, 4)]
            sequences = [started(group, i, one, 0) for i, one in enumerate(ids)]
            first = [s.take(33, draw=GREEDY) for s in sequences]
            step = group.step(*first)
            results = group.each(lambda runner, step=step: runner.step(step))[0]
            assert [r.error is None for r in results] == [True, token != bad, True]
            for sequence in sequences:
                sequence.tokens.append(5)
            second = group.logits(*(s.take() for s in sequences))
            rows = [i for i in range(len(second)) if not 8 <= i < 27]
            found.append(([results[0], results[2]], second[rows]))
    assert found[0][0] == found[1][0]
    assert torch.isfinite(found[1][1]).all() and torch.equal(found[0][1], found[1][1])
