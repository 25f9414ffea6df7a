"""Re-sharding in a simulated world: after the moves every rank has exactly what the new layout gives it.

The world is the plainest one: for each rank and weight, the set of elements that it holds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.spec.axes import Axis
from shardwise.spec.config import read_model
from shardwise.spec.formats import GPTQ, Dense
from shardwise.spec.layout import Layout, Shares
from shardwise.spec.model import Run, model_weights
from tests.spec.models_by_hand import Experts, around, attention, lay, layer, model

World = dict[tuple[int, str], set[tuple[int, ...]]]

PLAIN = model(6, 2, 2, hidden=3, width=5, vocab=7, layers=3, bias=True)
TIED = model(6, 2, 2, hidden=3, width=5, vocab=7, layers=3, tied=True)


def points(box) -> set[tuple[int, ...]]:
    return set(product(*box))


def world(layout: Layout) -> World:
    """What every rank holds; a weight of which it holds nothing is left out."""
    held = {(r, part.weight.name): points(part.ranges) for r in range(layout.mesh.size) for part in layout.slices(r)}
    return {key: elements for key, elements in held.items() if elements}


def reshard(old: Layout, new: Layout) -> Counter[int]:
    """Plays the moves and checks every one; returns how many elements each source sent."""
    before, wanted, sent = world(old), world(new), Counter[int]()
    after: World = {}
    for move in old.moves(new):
        key, elements = (move.target, move.weight.name), points(move.ranges)
        assert elements, "no empty move"
        assert move.source != move.target
        assert elements <= before[move.source, move.weight.name], "the source has it"
        assert not elements & before.get(key, set()), "the target had it not"
        assert not elements & after.get(key, set()), "nothing arrives twice"
        after.setdefault(key, set()).update(elements)
        sent[move.source] += len(elements)
    for key in wanted.keys() | after.keys():
        assert after.get(key, set()) <= wanted.get(key, set()), "nothing arrives that is not wanted"
        kept = before.get(key, set()) & wanted.get(key, set())
        assert kept | after.get(key, set()) == wanted.get(key, set()), key
    return sent


def chain(*layouts: Layout) -> list[Counter[int]]:
    return [reshard(old, new) for old, new in pairwise(layouts)]


@pytest.mark.parametrize("of", [PLAIN, TIED], ids=["plain", "tied"])
def test_from_degree_to_degree(of):
    chain(*(lay(of, (1.0,) * degree) for degree in (4, 3, 4, 2, 1, 6, 1, 5, 2)))


@pytest.mark.parametrize("of", [PLAIN, TIED], ids=["plain", "tied"])
def test_weighted(of):
    mixed = Shares((3.0, 1.0), (1.0, 1.0), (1.0, 2.0))
    chain(*(lay(of, s) for s in [(1.0, 1.0), (3.0, 1.0), mixed, (1.0, 2.0, 3.0), (5.0, 1.0, 1.0, 1.0), mixed]))


@pytest.mark.parametrize("of", [PLAIN, TIED], ids=["plain", "tied"])
def test_over_pipeline_stages_and_replicas(of):
    ways = [(1, 1, 1), (1, 3, 1), (2, 1, 1), (2, 2, 1), (3, 1, 2), (1, 2, 2), (4, 3, 1), (1, 1, 3), (1, 2, 1)]
    chain(*(lay(of, (1.0,) * tp, pp=pp, dp=dp) for tp, pp, dp in ways))


def test_packed_weights_move_by_the_same_logical_ranges():
    of = model(4, 2, 8, hidden=8, width=24, vocab=7, layers=1, fmt=GPTQ(4, 16))
    chain(*(lay(of, (1.0,) * degree) for degree in (1, 4, 3, 2)))
    for move in lay(of, (1.0,) * 4).moves(lay(of, (1.0,) * 3)):
        if move.weight.name.endswith(("qweight", "qzeros")):
            word = zip(move.ranges, move.weight.axes, move.weight.per, strict=True)
            assert all(r.start % 8 == 0 and (r.stop % 8 == 0 or r.stop == a.size) for r, a, per in word if per == 8)


def test_stacked_experts():
    body = layer(attention(4, 2, 2, 3, fmt=Dense()), Experts("experts", 5, Axis(4, "mlp"), 2), 3)
    of = around((Run("layers", 0, 2, body),), 3, 5)
    chain(*(lay(of, (1.0,) * tp, ep=ep, pp=pp) for tp, ep, pp in [(1, 1, 1), (1, 3, 1), (2, 2, 1), (2, 1, 2), (1, 5, 1)]))


def test_from_parts_of_experts_to_whole_ones_and_back():
    of = read_model(
        {"model_type": "mixtral", "num_local_experts": 4, "hidden_size": 4, "intermediate_size": 3, "num_hidden_layers": 2}
        | {"vocab_size": 5, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32, "head_dim": 2}
    )
    inside, whole = (replace(lay(of, (1.0, 2.0, 1.0)), expert_parallel=way) for way in (False, True))
    chain(inside, whole, inside, replace(lay(of, (1.0,) * 2), expert_parallel=True))


SHARES = st.lists(st.integers(1, 5).map(float), min_size=1, max_size=6)
WAYS = st.tuples(SHARES, SHARES, SHARES, st.integers(1, 3), st.integers(1, 2)).map(
    lambda way: (Shares(*(tuple((s * 6)[: len(way[0])]) for s in way[:3])), way[3], way[4])
)


@settings(max_examples=40, deadline=None)
@given(WAYS, WAYS, st.booleans())
def test_from_any_layout_to_any(a, b, tied):
    of = TIED if tied else PLAIN
    reshard(*(lay(of, shares, pp=pp, dp=dp) for shares, pp, dp in (a, b)))


@settings(max_examples=20, deadline=None)
@given(WAYS)
def test_nothing_moves_where_nothing_changes(way):
    shares, pp, dp = way
    assert not list(lay(TIED, shares, pp=pp, dp=dp).moves(lay(TIED, shares, pp=pp, dp=dp)))


def test_what_several_ranks_hold_is_sent_by_all_of_them():
    old, new = lay(PLAIN, (1.0,) * 2), lay(PLAIN, (1.0,) * 6)
    norms = [m for m in old.moves(new) if m.weight.name == "norm.weight"]
    assert [(m.source, m.target) for m in norms] == [(0, 2), (1, 3), (0, 4), (1, 5)]
    sent = reshard(lay(PLAIN, dp=3), lay(PLAIN, dp=6))
    assert len(set(sent.values())) == 1 and set(sent) == {0, 1, 2}, "three new replicas, each from another old one"


# --- copies -----------------------------------------------------------------------------------------------------------

LAYOUTS = {
    "one": lay(TIED),
    "two stages": lay(TIED, pp=2),
    "replicated kv": lay(PLAIN, (1.0,) * 6),
    "a kv head on two of three": lay(model(14, 2, 2, hidden=3, width=5, vocab=7, layers=2), (1.0,) * 3),
    "everything": lay(TIED, (2.0, 1.0, 1.0), pp=3, dp=2),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_copies_are_disjoint_cover_and_name_the_holders(layout):
    held = world(layout)
    for weight in model_weights(layout.model):
        seen: set[tuple[int, ...]] = set()
        for copy in layout.copies(weight):
            elements = points(copy.ranges)
            assert elements and not elements & seen
            seen |= elements
            holders = [r for r in range(layout.mesh.size) if elements & held.get((r, weight.name), set())]
            assert list(copy.ranks) == holders, weight.name
            assert all(elements <= held[r, weight.name] for r in holders), "held whole or not at all"
        assert seen == points(range(axis.size) for axis in weight.axes)


def copies(layout: Layout, name: str) -> list[tuple[tuple[range, ...], tuple[int, ...]]]:
    weight = next(w for w in model_weights(layout.model) if w.name == name)
    return [(copy.ranges, copy.ranks) for copy in layout.copies(weight)]


def test_copies_by_example():
    # Three ranks over 14 query heads and 2 KV heads: the second KV head's neighbours share one rank.
    shared = LAYOUTS["a kv head on two of three"]
    assert copies(shared, "layers.0.attn.k.weight") == [
        ((range(2), range(3)), (0, 1)),
        ((range(2, 4), range(3)), (1, 2)),
    ]
    assert copies(shared, "layers.1.norm_1.weight") == [((range(3),), (0, 1, 2))]
    assert copies(LAYOUTS["two stages"], "embed.weight") == [((range(7), range(3)), (0, 1))]
    assert copies(LAYOUTS["two stages"], "norm.weight") == [((range(3),), (1,))]
    assert copies(lay(PLAIN, (1.0, 1.0)), "embed.weight") == [((range(4), range(3)), (0,)), ((range(4, 7), range(3)), (1,))]
