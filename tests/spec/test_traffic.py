"""Traffic: the collectives that follow from the cut, and nothing besides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shardwise.spec import traffic
from shardwise.spec.blocks import MLP, Attention, Chain, HeadsNorm, Linear, Residual
from shardwise.spec.requantised import requantised
from shardwise.spec.rewrite import joined
from shardwise.spec.traffic import Call, Rows
from tests.spec.models_by_hand import lay, model

OF = model(6, 2, 2, hidden=5, width=11, vocab=13, layers=3)
DRAWN = Rows(best=2)


@pytest.mark.parametrize("degree", range(2, 7))
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_two_reductions_a_layer_one_for_the_embedding_and_each_rank_s_best(degree, dtype):
    found = traffic.of(OF, lay(OF, (1.0,) * degree, dtype=dtype), 7, DRAWN)
    layer = [Call("all_reduce", site, (7, 5), dtype) for site in ("attn_out", "mlp_down")]
    embed = Call("all_reduce", "embed", (7, 5), dtype)
    best = Call("all_gather", "draw_best", (2, 2 * degree), "float64")
    assert list(found) == [embed, *layer * 3, best]
    size = {"bfloat16": 2, "float32": 4}[dtype]
    assert sum(c.bytes for c in found) == size * 7 * 7 * 5 + 8 * 2 * 2 * degree


@pytest.mark.parametrize("pp", [1, 2, 3])
@pytest.mark.parametrize("dp", [1, 4])
def test_a_group_of_one_says_nothing(pp, dp):
    assert traffic.of(OF, lay(OF, pp=pp, dp=dp), 7, DRAWN) == ()


def test_sums_of_quantised_products_are_of_float64():
    """And of nothing else: an embedding's parts are zeros but one."""
    of = requantised(model(6, 2, 16, hidden=32, width=64, vocab=32, layers=3), "int8", 16)
    found = traffic.of(of, lay(of, (1.0, 1.0), dtype="bfloat16"), 7, DRAWN)
    layer = [Call("all_reduce", site, (7, 32), "float64") for site in ("attn_out", "mlp_down")]
    assert list(found[:-1]) == [Call("all_reduce", "embed", (7, 32), "bfloat16"), *layer * 3]
    assert sum(c.bytes for c in found[:-1]) == 7 * 32 * (2 + 6 * 8)


def test_shares_change_no_collective():
    assert traffic.of(OF, lay(OF, (1.0, 5.0)), 7, DRAWN) == traffic.of(OF, lay(OF, (1.0, 1.0)), 7, DRAWN)


def test_tying_the_head_changes_no_collective():
    tied = model(6, 2, 2, hidden=5, width=11, vocab=13, layers=3, tied=True)
    assert traffic.of(tied, lay(tied, (1.0, 1.0)), 7, DRAWN) == traffic.of(OF, lay(OF, (1.0, 1.0)), 7, DRAWN)


def test_a_contraction_over_an_axis_that_is_not_cut_needs_no_sum():
    def whole(linear: Linear) -> Linear:
        return replace(linear, out=replace(linear.out, cut=None), inp=replace(linear.inp, cut=None))

    layer = OF.runs[0].block
    assert isinstance(layer, Chain) and isinstance(layer.blocks[1], Residual)
    norm, mlp = layer.blocks[1].body.children()
    assert isinstance(mlp, MLP) and mlp.gate
    alone = replace(mlp, up=whole(mlp.up), gate=whole(mlp.gate), down=whole(mlp.down))
    block = Chain((layer.blocks[0], Residual(Chain((norm, alone)))))
    of = replace(OF, runs=(replace(OF.runs[0], block=block),))
    sites = [c.site for c in traffic.of(of, lay(of, (1.0, 1.0)), 7, DRAWN)]
    assert sites == ["embed", "attn_out", "attn_out", "attn_out", "draw_best"]


def changed(block: Chain):
    """The model by hand, with another block in all layers."""
    return replace(OF, runs=(replace(OF.runs[0], block=block),))


def test_branches_side_by_side_are_one_sum():
    layer = OF.runs[0].block
    attend, mlp = (part.body for part in layer.blocks)
    of = changed(Chain((Residual(joined(attend, mlp)),)))
    sites = [c.site for c in traffic.of(of, lay(of, (1.0, 1.0)), 7, DRAWN)]
    assert sites == ["embed", *["branches"] * 3, "draw_best"]
    assert traffic.of(of, lay(of), 7, DRAWN) == ()


def test_a_norm_over_all_heads_is_a_small_sum_in_float32_before_the_heads_meet():
    layer = OF.runs[0].block
    norm, attend = layer.blocks[0].body.blocks
    assert isinstance(attend, Attention)
    normed = replace(attend, heads_norm=HeadsNorm(attend.q.out, attend.k.out, 1e-5))
    of = changed(Chain((Residual(Chain((norm, normed))), layer.blocks[1])))
    found = traffic.of(of, lay(of, (1.0, 1.0)), 7, DRAWN)
    assert [c.site for c in found[1:4]] == ["qk_norm", "attn_out", "mlp_down"]
    assert found[1] == Call("all_reduce", "qk_norm", (7, 2), "float32")


def test_without_logits_there_is_nothing_to_gather():
    layout = lay(OF, (1.0, 1.0))
    assert traffic.of(OF, layout, 7, Rows()) == traffic.of(OF, layout, 7, DRAWN)[:-1]


def test_what_is_made_of_logits_in_the_order_in_which_it_is():
    rows = Rows(targets=((64, 2), (5, 2)), peaks=4, best=3, candidates=((2, 8), (1, 9)), whole=(8, 1), asked=((6, 0),))
    layout = lay(OF, (1.0, 0.2, 1.0))
    assert list(traffic.of(OF, layout, 7, rows))[len(traffic.of(OF, layout, 7, Rows())) :] == [
        Call("all_gather", "logprobs", (64, 4 * 3), "int64"),
        Call("all_reduce", "ranks", (64,), "int64"),
        Call("all_gather", "logprobs", (5, 4 * 3), "int64"),
        Call("all_reduce", "ranks", (5,), "int64"),
        Call("all_gather", "draw_peaks", (4, 3), "float64"),
        Call("all_gather", "draw_best", (3, 2 * 3), "float64"),
        Call("all_gather", "draw_candidates", (2, 25 * 3), "int64"),
        Call("all_gather", "draw_candidates", (1, 28 * 3), "int64"),
        Call("all_gather", "draw_whole", (8, 13), "float32"),
        Call("broadcast", "draw_decided", (8,), "int64"),
        Call("all_gather", "draw_whole", (1, 13), "float32"),
        Call("broadcast", "draw_decided", (1,), "int64"),
        Call("all_gather", "logprobs", (6, 2 * 3), "int64"),
        Call("all_reduce", "ranks", (6,), "int64"),
    ]
