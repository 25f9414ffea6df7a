"""What of the cache the layout decides: which layers share a page table, how many pages, how many bytes."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shardwise.spec.axes import Axis, split
from shardwise.spec.blocks import attentions
from shardwise.spec.kept import Kept
from shardwise.spec.layout import PAGE_TOKENS, CacheGroup
from shardwise.spec.model import layer_blocks as blocks_of
from tests.spec.models_by_hand import lay, model


def test_layers_of_one_window_share_a_page_table():
    of = model(6, 3, 4, layers=7, windows=(32, 32, None))
    layout = lay(of)
    kv = Axis(12, "kv", 4, 2)
    assert layout.cache == (
        CacheGroup(Kept("window", kv, (4, 4), 32), (0, 1, 3, 4, 6)),
        CacheGroup(Kept("full", kv, (4, 4)), (2, 5)),
    )
    assert [group.window for group in layout.cache] == [32, None]
    assert [len(lay(model(layers=5)).cache), lay(model(layers=5)).cache[0].layers] == [1, (0, 1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("shares", "pp"), [((1.0,), 1), ((1.0,) * 3, 2), ((2.0, 1.0, 3.0, 1.0), 3), ((1.0,) * 5, 2), ((1.0,) * 6, 3)]
)
def test_cache_bytes_are_those_of_the_kv_heads_held(shares, pp):
    layout = lay(model(14, 2, 4, layers=7, windows=(32, 32, None)), shares, pp=pp)
    for rank in range(layout.mesh.size):
        at = layout.mesh.coords(rank)
        expected = [0, 0]
        for i, (_, block) in enumerate(blocks_of(layout.model)):
            attend = next(attentions(block))
            if i in layout.stages[at.pp]:
                held = len(layout.heads(attend, at)[1])
                expected[attend.window is None] += 2 * held * 4 * 2  # keys and values, of 4, in bfloat16
        assert [layout.token_bytes(group, rank) for group in layout.cache] == expected
        assert layout.kv_bytes_per_token(rank) == sum(expected)
        assert layout.kv_bytes(rank, (3, 5)) == PAGE_TOKENS * (3 * expected[0] + 5 * expected[1])


@pytest.mark.parametrize("shares", [(1.0,), (1.0, 1.0, 1.0), (5.0, 1.0), (1.0, 1e-6), (1.0,) * 6])
def test_a_latent_is_whole_on_every_rank_that_has_heads(shares):
    """Beside it a group whose keys are wider than its values: each tensor is counted by its own width."""
    layout = lay(model(6, 6, 4), shares)
    latent = CacheGroup(Kept("latent", Axis(6 * 10, "q", 10), (7,)), (0,))
    uneven = CacheGroup(Kept("full", Axis(6 * 10, "q", 10), (10, 3)), (0,))
    for rank, heads in enumerate(map(len, split(6, shares))):
        at = layout.mesh.coords(rank)
        assert layout.kept(latent, at) == ((min(heads, 1), 7),)
        assert layout.kept(uneven, at) == ((heads, 10), (heads, 3))
        assert layout.token_bytes(latent, rank) == (2 * 7 if heads else 0)
        assert layout.token_bytes(uneven, rank) == 2 * heads * 13


def test_replicated_kv_heads_cost_cache():
    of = model(14, 2, 4, layers=1)
    whole = lay(of).kv_bytes_per_token(0)
    assert whole == 2 * 2 * 4 * 2
    for degree, copies in ((1, 2), (2, 2), (3, 4), (5, 6), (7, 8), (14, 14)):
        layout = lay(of, (1.0,) * degree)
        assert sum(map(layout.kv_bytes_per_token, range(degree))) == copies * whole // 2


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 60), st.lists(st.integers(1, 60), min_size=1))
@example(200, 2, 1, [1])  # two tokens on either side of a page's end
def test_pages_suffice_for_every_step_and_waste_at_most_two(context, window, chunk, chunks):
    full, slid = lay(model(layers=2, windows=(None, window))).cache
    assert full.pages(context, chunk) * PAGE_TOKENS - context in range(PAGE_TOKENS)
    start, most = 0, 0
    sizes = [min(c, chunk) for c in chunks] + [chunk] * context
    for size in sizes:
        stop = min(start + size, context)
        if start >= stop:
            break
        seen = range(max(0, start - window + 1), stop)  # what the queries of this chunk read, themselves included
        most = max(most, len({position // PAGE_TOKENS for position in seen}))
        start = stop
    assert most <= slid.pages(context, chunk) <= full.pages(context, chunk)
    assert slid.pages(context, chunk) <= (window + chunk) // PAGE_TOKENS + 2


def test_pages_of_a_layout():
    layout = lay(model(layers=3, windows=(32, 32, None)))
    assert layout.kv_pages(100, 16) == (4, 7)
    assert layout.kv_pages(17, 16) == (2, 2)
    assert layout.kv_pages(16, 16) == (1, 1)
