"""Traffic: the collectives that follow from the cut, and nothing besides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shardwise.spec import traffic
from shardwise.spec.blocks import MLP, Attention, Chain, HeadsNorm, Linear, Residual
from shardwise.spec.rewrite import joined
from shardwise.spec.traffic import Call
from tests.spec.models_by_hand import lay, model

OF = model(6, 2, 2, hidden=5, width=11, vocab=13, layers=3)


@pytest.mark.parametrize("degree", range(2, 7))
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_two_reductions_a_layer_one_for_the_embedding_one_gather(degree, dtype):
    found = traffic.of(OF, lay(OF, (1.0,) * degree, dtype=dtype), tokens=7, sampled=2)
    layer = [Call("all_reduce", site, (7, 5), dtype) for site in ("attn_out", "mlp_down")]
    embed = Call("all_reduce", "embed", (7, 5), dtype)
    logits = Call("all_gather", "logits", (2, 13), dtype)
    assert list(found) == [embed, *layer * 3, logits]
    size = {"bfloat16": 2, "float32": 4}[dtype]
    assert sum(c.bytes for c in found) == size * (7 * 7 * 5 + 2 * 13)


@pytest.mark.parametrize("pp", [1, 2, 3])
@pytest.mark.parametrize("dp", [1, 4])
def test_a_group_of_one_says_nothing(pp, dp):
    assert traffic.of(OF, lay(OF, pp=pp, dp=dp), tokens=7, sampled=2) == ()


def test_shares_change_no_collective():
    assert traffic.of(OF, lay(OF, (1.0, 5.0)), 7, 2) == traffic.of(OF, lay(OF, (1.0, 1.0)), 7, 2)


def test_tying_the_head_changes_no_collective():
    tied = model(6, 2, 2, hidden=5, width=11, vocab=13, layers=3, tied=True)
    assert traffic.of(tied, lay(tied, (1.0, 1.0)), 7, 2) == traffic.of(OF, lay(OF, (1.0, 1.0)), 7, 2)


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
    sites = [c.site for c in traffic.of(of, lay(of, (1.0, 1.0)), 7, 2)]
    assert sites == ["embed", "attn_out", "attn_out", "attn_out", "logits"]


def changed(block: Chain):
    """The model by hand, with another block in all layers."""
    return replace(OF, runs=(replace(OF.runs[0], block=block),))


def test_branches_side_by_side_are_one_sum():
    layer = OF.runs[0].block
    attend, mlp = (part.body for part in layer.blocks)
    of = changed(Chain((Residual(joined(attend, mlp)),)))
    sites = [c.site for c in traffic.of(of, lay(of, (1.0, 1.0)), 7, 2)]
    assert sites == ["embed", *["branches"] * 3, "logits"]
    assert traffic.of(of, lay(of), 7, 2) == ()


def test_a_norm_over_all_heads_is_a_small_sum_in_float32_before_the_heads_meet():
    layer = OF.runs[0].block
    norm, attend = layer.blocks[0].body.blocks
    assert isinstance(attend, Attention)
    normed = replace(attend, heads_norm=HeadsNorm(attend.q.out, attend.k.out, 1e-5))
    of = changed(Chain((Residual(Chain((norm, normed))), layer.blocks[1])))
    found = traffic.of(of, lay(of, (1.0, 1.0)), 7, 2)
    assert [c.site for c in found[1:4]] == ["qk_norm", "attn_out", "mlp_down"]
    assert found[1] == Call("all_reduce", "qk_norm", (7, 2), "float32")


def test_without_logits_there_is_nothing_to_gather():
    layout = lay(OF, (1.0, 1.0))
    assert traffic.of(OF, layout, 7, 0) == traffic.of(OF, layout, 7, 2)[:-1]
