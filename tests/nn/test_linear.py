"""The linear layer, the tables and the head: cut anywhere, the parts make up the whole."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from shardwise.nn.batch import Rank
from shardwise.nn.linear import Linear
from shardwise.nn.table import Head, Table
from shardwise.spec import blocks
from shardwise.spec.axes import Axis
from shardwise.spec.formats import GPTQ
from shardwise.spec.layout import Layout
from tests.checkpoints import FAMILIES
from tests.group import even, layout_of
from tests.nn.pieces import each, noise

SHARES = [even(1), even(2), (3.0, 1.0, 1.0), even(5), (1.0, 1e-6, 1.0)]


def cut(weight: torch.Tensor, layout: Layout, rank: Rank, *axes: Axis) -> torch.Tensor:
    spans = [layout.span(axis, rank.at) for axis in axes]
    return weight[tuple(slice(span.start, span.stop) for span in spans)]


@pytest.mark.parametrize("shares", SHARES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_rows_give_parts_of_the_output_and_columns_parts_of_a_sum(shares: tuple[float, ...], bias: bool) -> None:
    """The bias of a sum is added once, not by every rank."""
    layout = layout_of(FAMILIES["llama"], shares)
    width, hidden = Axis(40, "mlp", 8), Axis(12)
    up, down = blocks.Linear("up", width, hidden, bias), blocks.Linear("down", hidden, width, bias)
    w_up, b_up, w_down, b_down, x = noise(40, 12), noise(40), noise(12, 40), noise(12) + 5, noise(7, 12)

    def work(rank: Rank) -> torch.Tensor:
        tensors = {
            "up.weight": cut(w_up, layout, rank, width),
            "up.bias": cut(b_up, layout, rank, width),
            "down.weight": cut(w_down, layout, rank, hidden, width),
            "down.bias": b_down,
        }
        return Linear(down, "down", rank, tensors)(Linear(up, "up", rank, tensors)(x))

    want = functional.linear(functional.linear(x, w_up, b_up if bias else None), w_down, b_down if bias else None)
    for found in each(layout, work):
        assert torch.allclose(found, want, atol=1e-4)


def test_a_format_that_nothing_multiplies_by_is_refused() -> None:
    layout = layout_of(FAMILIES["llama"], even(1))
    packed = blocks.Linear("up", Axis(64, "mlp"), Axis(64), format=GPTQ(4, 16))
    with pytest.raises(NotImplementedError, match=r"(?i)gptq"):
        each(layout, lambda rank: Linear(packed, "up", rank, {}))


@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_a_table_finds_every_row(shares: tuple[float, ...]) -> None:
    layout = layout_of(FAMILIES["llama"], shares)
    rows, weight = Axis(29, "vocab"), noise(29, 6)
    ids = torch.tensor([0, 28, 5, 5, 14, 9, 20])

    def work(rank: Rank) -> torch.Tensor:
        return Table(blocks.Table("wte", rows, 6), "wte", rank, {"wte.weight": cut(weight, layout, rank, rows)})(ids)

    assert all(torch.equal(found, weight[ids]) for found in each(layout, work))


def test_a_table_that_is_not_cut_talks_to_nobody() -> None:
    layout, weight = layout_of(FAMILIES["gpt2"], even(2)), noise(9, 6)
    table = blocks.Table("wpe", Axis(9), 6)
    found = each(layout, lambda rank: Table(table, "wpe", rank, {"wpe.weight": weight})(torch.tensor([rank.index])))
    assert torch.equal(torch.cat(found), weight[:2])


@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_each_rank_s_head_has_its_range_of_the_vocabulary_in_float32(shares: tuple[float, ...]) -> None:
    layout = layout_of(FAMILIES["llama"], shares)
    vocab, weight, scale, x = Axis(29, "vocab"), noise(29, 6).bfloat16(), noise(6).bfloat16(), noise(3, 6).bfloat16()
    block = blocks.Head(blocks.Norm("norm", 6, 1e-6), blocks.Linear("lm_head", vocab, Axis(6)), scale=0.25)

    def work(rank: Rank) -> torch.Tensor:
        return Head(block, "", rank, {"norm.weight": scale, "lm_head.weight": cut(weight, layout, rank, vocab)})(x)

    found = torch.cat(each(layout, work), -1)
    normed = (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)).bfloat16() * scale
    assert found.dtype == torch.float32 and found.shape == (3, 29)
    assert torch.allclose(found, functional.linear(normed, weight).float() * 0.25, rtol=0.02, atol=0.01)


def test_a_tied_head_holds_no_tensor_of_its_own() -> None:
    layout, weight = layout_of(FAMILIES["llama"], even(1)), noise(29, 6)
    tied = blocks.Linear("lm_head", Axis(29, "vocab"), Axis(6), tied="wte.weight")
    [linear] = each(layout, lambda rank: Linear(tied, "lm_head", rank, {"wte.weight": weight}))
    assert linear.weight.data_ptr() == weight.data_ptr()
