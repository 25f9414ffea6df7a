"""The layout: shards tile, heads find their KV, bytes add up, and what cannot be cut is refused.

The properties are checked against definitions written here once more in the plainest way: sets, fractions and sums.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import cache
from itertools import pairwise
from math import gcd, lcm, prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.errors import LayoutError
from shardwise.spec import formats
from shardwise.spec.axes import BITS, Axis, Weight
from shardwise.spec.blocks import Chain, attentions
from shardwise.spec.config import read_model
from shardwise.spec.formats import AWQ, GPTQ, Dense, FP8Block
from shardwise.spec.layout import ALIGN_BYTES, Shares, cut_heads
from shardwise.spec.mesh import Coords
from shardwise.spec.model import Model, Run, model_weights, parameters
from tests.spec.models_by_hand import FORMATS, Counted, Experts, around, attention, lay, layer, mlp, model


def patterns(degree: int) -> list[tuple[float, ...]]:
    """Even, rising, one fast among slow, and one that leaves ranks empty."""
    found = [(1.0,) * degree, tuple(range(1, degree + 1)), (3.0, *(1.0,) * (degree - 1)), (*(0.01,) * (degree - 1), 1.0)]
    return list(dict.fromkeys(tuple(float(s) for s in shares) for shares in found))


def tile(parts: list[range], size: int) -> bool:
    """Whether the parts follow one another from 0 to `size`."""
    ends = [0, *(part.stop for part in parts)]
    return all(part.start == end for part, end in zip(parts, ends, strict=False)) and ends[-1] == size


# --- shards -----------------------------------------------------------------------------------------------------------


def check_tiles(layout, fmt, *, whole_groups: bool) -> int:
    """Every shard of every weight on the axis that is cut; returns how many there were."""
    seen = 0
    for weight in layout.weights(0):
        boxes = [layout.box(weight, layout.mesh.coords(rank)) for rank in range(layout.mesh.size)]
        seen += len(boxes)
        for i, (axis, per) in enumerate(zip(weight.axes, weight.per or (1,) * len(weight.axes), strict=True)):
            parts, stored = [box[i] for box in boxes], [weight.stored(box)[i] for box in boxes]
            if axis.cut is None:
                assert all(part == range(axis.size) for part in parts), weight
                assert all(part == range(weight.shape[i]) for part in stored), weight
                continue
            assert all(
                part.start % axis.grain == 0 and (part.stop % axis.grain == 0 or part.stop == axis.size)
                for part in parts
                if part
            )
            if axis.cut == "kv":
                assert set().union(*parts) == set(range(axis.size))
                assert set().union(*stored) == set(range(weight.shape[i]))
            else:
                assert tile(parts, axis.size), (weight, parts)
            grouped = weight.companion and per in (fmt.group("in"), fmt.group("out")) and per > 1 and not whole_groups
            if not grouped:
                assert all(part.start % per == 0 for part in parts if part), f"{weight.name}: a stored word is split"
                assert axis.cut == "kv" or tile(stored, weight.shape[i]), (weight, stored)
            elif axis.cut != "kv":
                held = [(part, own) for part, own in zip(parts, stored, strict=True) if part]
                assert held[0][1].start == 0 and held[-1][1].stop == weight.shape[i]
                for (a, own_a), (_, own_b) in pairwise(held):
                    assert own_a.stop - own_b.start == (a.stop % per != 0), "only a group that straddles is held twice"
    return seen


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_shards_tile_every_weight(fmt):
    of = model(16, 4, 8, hidden=48, width=168, vocab=53, layers=1, fmt=fmt, bias=True)
    degrees = range(1, 17)
    seen = sum(check_tiles(lay(of, s), fmt, whole_groups=False) for degree in degrees for s in patterns(degree))
    assert seen > 6000


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_with_groups_as_grain_no_scale_is_held_twice(fmt):
    grain = lcm(*(f(side) for f in (fmt.pack, fmt.group) for side in ("in", "out")))
    of = model(8, 8, 32, hidden=48, width=360, vocab=53, layers=1, fmt=fmt, grain=grain)
    for degree in range(1, 9):
        for shares in patterns(degree):
            check_tiles(lay(of, shares), fmt, whole_groups=True)


QUANTISED = {
    "dense": None,
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True},
    "gptq of 8 bits, act-order": {"quant_method": "gptq", "bits": 8, "group_size": 128, "sym": True, "desc_act": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
}


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "hidden", "width"), [(32, 8, 4096, 14336), (14, 2, 896, 4864), (9, 3, 576, 1536)]
)
def test_shards_of_published_shapes_tile(kind, heads, kv_heads, hidden, width):
    config = {"model_type": "llama", "num_hidden_layers": 1, "vocab_size": 128256, "max_position_embeddings": 2048}
    config |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "hidden_size": hidden, "intermediate_size": width}
    of = read_model(config | ({"quantization_config": QUANTISED[kind]} if QUANTISED[kind] else {}))
    fmt = formats.of(QUANTISED[kind]) if QUANTISED[kind] else Dense()
    for degree in (d for d in (1, 2, 3, 4, 5, 7, 8, 13, 16) if d <= heads):
        for shares in patterns(degree):
            check_tiles(lay(of, shares), fmt, whole_groups=False)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 9), st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
def test_any_axis_is_tiled_in_grains(units, grain, shares):
    size = units * grain - grain // 2
    layout = lay(model(8, 8), shares)
    parts = layout.spans(Axis(size, "mlp", grain))
    assert tile(list(parts), size)
    assert all(part.start % grain == 0 for part in parts if part)
    for part, share in zip(parts, shares, strict=True):
        assert abs(len(part) - size * share / sum(shares)) < 2 * grain


def test_each_family_has_its_own_shares():
    layout = lay(model(8, 4), Shares((1.0, 3.0), (1.0, 1.0), (3.0, 1.0)))
    assert layout.spans(Axis(16, "q", 2, 2)) == (range(4), range(4, 16))
    assert layout.spans(Axis(8, "kv", 2, 2)) == (range(2), range(2, 8))
    attend = next(attentions(layout.model.runs[0].block))
    assert [layout.heads(attend, Coords(tp)) for tp in range(2)] == [(range(2), range(1)), (range(2, 8), range(1, 4))]
    assert layout.spans(Axis(16, "mlp")) == (range(8), range(8, 16))
    assert layout.spans(Axis(16, "vocab")) == (range(12), range(12, 16))
    with pytest.raises(LayoutError, match="an axis of 16 elements is not cut"):
        layout.spans(Axis(16))


@pytest.mark.parametrize("ep", [1, 2, 3, 5])
@pytest.mark.parametrize("shares", [(1.0,), (1.0, 2.0), (1.0, 1.0, 1.0)])
def test_stacked_experts_are_cut_twice(ep, shares):
    experts = Experts("experts", 5, Axis(7, "mlp"), 3)
    body = layer(attention(4, 2, 2, 5, fmt=Dense()), experts, 5)
    layout = lay(around((Run("layers", 0, 1, body),), 5, 13), shares, ep=ep)
    weight = next(w for w in layout.weights(0) if w.name.endswith("experts.up"))
    held = [p for rank in range(layout.mesh.size) for p in points(layout.box(weight, layout.mesh.coords(rank)))]
    assert len(held) == len(set(held)) == 5 * 7 * 3
    assert layout.cut(weight.axes[0]) == (ep > 1)
    assert layout.cut(weight.axes[1]) == (len(shares) > 1)
    assert not layout.cut(weight.axes[2])


def points(box) -> list[tuple[int, int, int]]:
    return [(a, b, c) for a in box[0] for b in box[1] for c in box[2]]


# --- heads ------------------------------------------------------------------------------------------------------------


def dealt(units: int, shares) -> list[range]:
    """Units by nearest cumulative share, in fractions."""
    total, run, ends = sum(map(Fraction, shares)), Fraction(0), [0]
    for share in shares:
        run += Fraction(share)
        ends.append(int(units * run / total + Fraction(1, 2)))
    return [range(a, b) for a, b in pairwise(ends)]


def heaviest(queries: list[range], group: int, shares) -> Fraction:
    """The load of the heaviest rank for its share: query heads, and KV heads that they read counted double."""
    reads = [len({head // group for head in q}) for q in queries]
    return max((len(q) + 2 * kv) / Fraction(share) for q, kv, share in zip(queries, reads, shares, strict=True))


@cache
def one_layer(heads: int, kv_heads: int) -> Model:
    return model(heads, kv_heads, 2, layers=1)


def check_heads(heads: int, kv_heads: int, shares: tuple[float, ...]) -> None:
    group = heads // kv_heads
    by_group = [range(r.start * group, r.stop * group) for r in dealt(kv_heads, shares)]
    by_head = dealt(heads, shares)
    lighter = heaviest(by_head, group, shares) < heaviest(by_group, group, shares)
    layout = lay(one_layer(heads, kv_heads), shares)
    block = next(attentions(layout.model.runs[0].block))
    q_weight, k_weight = (next(w for w in layout.weights(0) if w.name.endswith(end)) for end in ("q.weight", "k.weight"))
    queries, held = [], []
    for rank in range(layout.mesh.size):
        at = layout.mesh.coords(rank)
        q, kv = layout.heads(block, at)
        assert list(kv) == sorted({head // group for head in q}), "exactly the KV heads that its queries read"
        assert [kv[i] for i in layout.kv_of_queries(block, at)] == [head // group for head in q]
        assert layout.box(q_weight, at)[0] == range(q.start * 2, q.stop * 2)
        assert layout.box(k_weight, at)[0] == range(kv.start * 2, kv.stop * 2)
        queries.append(q)
        held += kv
    assert tile(queries, heads)
    assert set(held) == set(range(kv_heads))
    assert heaviest(queries, group, shares) <= heaviest(by_group, group, shares), "never heavier than whole groups"
    assert queries == (by_head if lighter else by_group), "replicated only where that lightens the heaviest rank"
    if not lighter:
        assert len(held) == kv_heads


def test_grouped_query_attention_at_every_degree():
    shapes = [(h, kv) for h in (*range(1, 13), 14, 15, 16) for kv in range(1, h + 1) if h % kv == 0]
    shapes += [(25, 25), (28, 4), (32, 8), (40, 10), (64, 8), (71, 1)]
    cases = [(h, kv, shares) for h, kv in shapes for degree in range(1, min(h, 16) + 1) for shares in patterns(degree)]
    for case in cases:
        check_heads(*case)
    assert len(cases) > 1200


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.lists(st.floats(0.05, 20), min_size=1, max_size=8))
def test_grouped_query_attention_at_any_shares(kv_heads, group, shares):
    check_heads(kv_heads * group, kv_heads, tuple(shares[: kv_heads * group]))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "shares", "queries", "kv"),
    [
        (14, 2, (1, 1, 1), (5, 4, 5), (1, 2, 1)),
        (14, 2, (1,) * 5, (3, 3, 2, 3, 3), (1, 1, 2, 1, 1)),
        (14, 2, (1,) * 7, (2,) * 7, (1, 1, 1, 2, 1, 1, 1)),
        (9, 3, (1, 1), (5, 4), (2, 2)),
        (9, 3, (1,) * 4, (3, 3, 0, 3), (1, 1, 0, 1)),  # by query heads, the second rank would keep two KV heads
        (25, 25, (1, 1, 1), (8, 9, 8), (8, 9, 8)),
        (12, 6, (1,) * 5, (2, 3, 2, 3, 2), (1, 2, 2, 2, 1)),
        (40, 10, (1, 1, 1), (13, 14, 13), (4, 4, 4)),
        (8, 1, (1, 1, 1), (3, 2, 3), (1, 1, 1)),
        (32, 8, (1, 1), (16, 16), (4, 4)),
        (32, 8, (1, 3), (8, 24), (2, 6)),
    ],
)
def test_real_shapes(heads, kv_heads, shares, queries, kv):
    found = cut_heads(kv_heads, heads // kv_heads, tuple(map(float, shares)))
    assert tuple(len(q) for q, _ in found) == queries
    assert tuple(len(k) for _, k in found) == kv


# --- what a rank holds ------------------------------------------------------------------------------------------------

DEGREES = [((1.0,), 1), ((1.0, 1.0), 1), ((1.0, 1.0, 1.0), 2), ((2.0, 1.0, 3.0, 1.0), 3), ((1.0,) * 6, 3), ((1.0,), 3)]
KINDS = {
    "plain": model(layers=5),
    "tied": model(layers=5, tied=True, bias=True),
    "windows": model(layers=5, windows=(8, 8, None)),
    "gptq": model(16, 8, 8, 48, 168, layers=5, fmt=GPTQ(4, 16), tied=True),
    "act-order": model(16, 8, 8, 48, 168, layers=5, fmt=GPTQ(4, 16, permuted=True)),
    "awq": model(16, 8, 8, 48, 168, layers=5, fmt=AWQ(4, 16)),
    "fp8": model(16, 8, 8, 48, 168, layers=5, fmt=FP8Block(16, 16)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shares", "pp"), DEGREES)
def test_bytes_are_the_sum_tensor_by_tensor(kind, shares, pp):
    layout = lay(KINDS[kind], shares, pp=pp, dp=2)
    for rank in range(layout.mesh.size):
        at = layout.mesh.coords(rank)
        total, end = 0, 0
        for weight, part in zip(layout.weights(at.pp), layout.slices(rank), strict=True):
            assert (part.weight, part.ranges) == (weight, layout.box(weight, at))
            assert part.dtype == (weight.dtype or "bfloat16")
            assert part.shape == tuple(map(len, weight.stored(part.ranges)))
            assert part.bytes == prod(part.shape) * BITS[part.dtype] // 8
            assert part.offset % ALIGN_BYTES == 0
            assert 0 <= part.offset - end < ALIGN_BYTES, "in order, disjoint, no more than alignment between"
            total, end = total + part.bytes, part.offset + part.bytes
        assert layout.weight_bytes(rank) == total
        assert 0 <= layout.arena_bytes(rank) - end < ALIGN_BYTES
        assert layout.arena_bytes(rank) % ALIGN_BYTES == 0


def test_whole_bytes_are_the_parameters():
    for kind in ("plain", "tied", "windows"):
        of = KINDS[kind]
        assert lay(of).weight_bytes(0) == 2 * parameters(of)
        assert lay(of, dtype="float32").weight_bytes(0) == 4 * parameters(of)


def names(layout, pp: int) -> list[str]:
    return [weight.name for weight in layout.weights(pp)]


@pytest.mark.parametrize("kind", ["plain", "tied", "windows"])
@pytest.mark.parametrize("pp", [1, 2, 3, 4, 5])
def test_stages_partition_the_weights(kind, pp):
    layout = lay(KINDS[kind], pp=pp)
    assert [i for stage in layout.stages for i in stage] == list(range(5))
    assert all(layout.stages)
    held = [name for stage in range(pp) for name in names(layout, stage)]
    whole = [weight.name for weight in model_weights(layout.model)]
    again = ["embed.weight"] if kind == "tied" and pp > 1 else []
    assert sorted(held) == sorted(whole + again)
    assert "embed.weight" in names(layout, 0) and "norm.weight" in names(layout, pp - 1)
    for stage, layers in enumerate(layout.stages):
        assert {int(n.split(".")[1]) for n in names(layout, stage) if n.startswith("layers.")} == set(layers)


def test_a_tied_head_on_another_stage_is_a_second_copy():
    of = KINDS["tied"]
    table = 2 * 13 * 5
    assert sum(lay(of, pp=2).weight_bytes(r) for r in range(2)) == lay(of).weight_bytes(0) + table
    assert names(lay(of), 0).count("embed.weight") == 1


def test_equal_layers_are_summed_once():
    # As many layers and experts as DeepSeek-V3, so that a sum tensor by tensor would be forty thousand of them.
    fmt = Counted()
    attend = attention(8, 4, 2, 16, fmt=fmt)
    dense = layer(attend, mlp(16, 32, fmt=fmt), 16)
    sparse = layer(attend, Chain(tuple(mlp(16, 8, fmt=fmt, name=f"expert_{i}") for i in range(256)), "mlp"), 16)
    of = around((Run("layers", 0, 3, dense), Run("layers", 3, 58, sparse)), 16, 64)
    heads = 4 * 8 * 2 * 16 - 2 * 4 * 2 * 16  # q and o, and k and v of half as many heads
    layers = 3 * (3 * 16 * 32) + 58 * 256 * (3 * 16 * 8) + 61 * (heads + 2 * 16)
    assert lay(of).weight_bytes(0) == 2 * (layers + 2 * 64 * 16 + 16)
    assert len(fmt.asked) == (4 + 3) + (4 + 3 * 256)
    fmt.asked.clear()
    layout = lay(of, (1.0,) * 8, pp=4)
    layout.arena_bytes(31)
    assert len(fmt.asked) == 4 + 3 * 256, "the last stage has sparse layers alone"


# --- refusals ---------------------------------------------------------------------------------------------------------


def refused(message: str, **how) -> None:
    with pytest.raises(LayoutError, match=re.escape(message)):
        lay(model(14, 2, layers=3), **how)


def test_what_cannot_be_cut_is_refused():
    refused("degree 15 is above the 14 query heads of this model; the largest that works is -tp 14", shares=(1.0,) * 15)
    refused("4 pipeline stages for 3 layers; the most is 3", pp=4)
    refused("2 shares (1,2) for 3 ranks; give exactly 3", shares=Shares((1.0,) * 3, (1.0, 2.0), (1.0,) * 3))
    refused("1 shares (5) for 2 ranks; give exactly 2", shares=Shares((1.0,) * 2, (1.0,) * 2, (5.0,)))
    assert lay(model(14, 2), (1.0,) * 14).mesh.tp == 14
    assert lay(model(layers=3), pp=3).mesh.pp == 3


@pytest.mark.parametrize("bad", [0.0, -1.0, -0.0, float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("family", ["attention", "mlp", "vocab"])
def test_shares_are_positive_and_finite(bad, family):
    shares = {"attention": (1.0, 2.0), "mlp": (1.0, 2.0), "vocab": (1.0, 2.0)} | {family: (1.5, bad)}
    refused(f"shares 1.5,{bad:g}: each must be positive and finite", shares=Shares(**shares))


def test_the_narrowest_layer_sets_the_highest_degree():
    wide, narrow = (layer(attention(h, h, 2, 8, fmt=Dense()), mlp(8, 8, fmt=Dense()), 8) for h in (8, 3))
    of = around((Run("layers", 0, 1, wide), Run("layers", 1, 1, narrow)), 8, 16)
    with pytest.raises(LayoutError, match="above the 3 query heads"):
        lay(of, (1.0,) * 4)


def test_a_family_coarser_than_the_degree_leaves_ranks_empty():
    layout = lay(model(8, 8, width=10, grain=5), (1.0,) * 8)
    parts = layout.spans(Axis(10, "mlp", 5))
    assert sorted(map(len, parts)) == [0] * 6 + [5] * 2
    weight = Weight("w", (Axis(10, "mlp", 5), Axis(4)), per=(5, 1))
    boxes = [layout.box(weight, layout.mesh.coords(rank)) for rank in range(8)]
    assert sum(len(weight.stored(box)[0]) for box in boxes) == 2
    assert gcd(*(len(part) for part in parts)) == 5
