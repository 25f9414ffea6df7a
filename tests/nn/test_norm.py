"""Norms by their definition, and over heads that are cut anywhere: a head that several ranks hold counts once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from shardwise.nn.batch import Rank
from shardwise.nn.norm import HeadsNorm, Norm
from shardwise.spec import blocks
from shardwise.spec.axes import Axis
from shardwise.spec.layout import Layout, cut_heads
from tests.checkpoints import FAMILIES
from tests.group import even, layout_of
from tests.nn.pieces import each, noise

CUTS = [even(1), even(2), even(3), even(5), even(8), (3.0, 1.0, 1.0), (1.0, 1e-6, 1.0)]
HEADS = [(8, 8), (8, 4), (8, 2), (8, 1)]
DIM, EPS = 6, 1e-2


def heads(layout: Layout, rank: Rank, axis: Axis, x: torch.Tensor) -> torch.Tensor:
    """The rank's part of the last dimension of x."""
    span = layout.span(axis, rank.at)
    return x[..., span.start : span.stop]


@pytest.mark.parametrize("shares", CUTS, ids=str)
@pytest.mark.parametrize(("queries", "kv"), HEADS)
def test_all_heads_are_normed_together(queries: int, kv: int, shares: tuple[float, ...]) -> None:
    layout = layout_of(FAMILIES["llama"], shares)
    q_axis, k_axis = Axis(queries * DIM, "q", DIM, queries // kv), Axis(kv * DIM, "kv", DIM, queries // kv)
    block = blocks.HeadsNorm(q_axis, k_axis, EPS)
    # No two heads alike, so that one that is left out or counted twice is seen.
    q, k = noise(7, q_axis.size) * torch.arange(1, q_axis.size + 1), noise(7, k_axis.size) * torch.arange(1, k_axis.size + 1)
    q_weight, k_weight = noise(q_axis.size), noise(k_axis.size)

    def work(rank: Rank) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        tensors = {
            "attn.q_norm.weight": heads(layout, rank, q_axis, q_weight),
            "attn.k_norm.weight": heads(layout, rank, k_axis, k_weight),
        }
        norm = HeadsNorm(block, "attn", rank, tensors)
        found = norm(*(heads(layout, rank, a, x).unflatten(1, (-1, DIM)) for a, x in ((q_axis, q), (k_axis, k))))
        wanted = (heads(layout, rank, a, normed(x, w)) for a, x, w in ((q_axis, q, q_weight), (k_axis, k, k_weight)))
        return (*(part.flatten(1) for part in found), *wanted)

    for found_q, found_k, want_q, want_k in each(layout, work):
        assert torch.allclose(found_q, want_q, atol=1e-5) and torch.allclose(found_k, want_k, atol=1e-5)


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.double()
    return (wide / (wide.square().mean(-1, keepdim=True) + EPS).sqrt() * weight).float()


@pytest.mark.parametrize("shares", CUTS, ids=str)
@pytest.mark.parametrize(("queries", "kv"), HEADS)
def test_every_element_is_counted_by_one_rank(queries: int, kv: int, shares: tuple[float, ...]) -> None:
    layout = layout_of(FAMILIES["llama"], shares)
    axis = Axis(kv * DIM, "kv", DIM, queries // kv)

    def counted() -> Iterator[int]:
        for index in range(layout.mesh.size):
            found = layout.counted(axis, layout.mesh.coords(index))
            assert set(found) <= set(layout.span(axis, layout.mesh.coords(index)))
            assert not found or found.stop == layout.span(axis, layout.mesh.coords(index)).stop
            yield from found

    assert list(counted()) == list(range(axis.size))


def test_the_cuts_replicate_heads() -> None:
    """Or the tests above would not show that they count once."""
    held = [sum(len(k) for _, k in cut_heads(kv, 8 // kv, shares)) - kv for _, kv in HEADS for shares in CUTS]
    assert sum(extra > 0 for extra in held) >= 8


def rms(x: torch.Tensor) -> torch.Tensor:
    return x.double() / (x.double().square().mean(-1, keepdim=True) + EPS).sqrt()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_wide_norm_is_rounded_once(dtype: torch.dtype, offset: float) -> None:
    """And a narrow one before the weight too: in 16 bits they differ, each as the model that was trained with it."""
    x, weight = noise(50, 32).to(dtype), noise(32).to(dtype)
    layout = layout_of(FAMILIES["llama"], even(1))

    def run(wide: bool) -> torch.Tensor:
        block = blocks.Norm("norm", 32, EPS, offset=offset, wide=wide)
        return each(layout, lambda rank: Norm(block, "norm", rank, {"norm.weight": weight})(x))[0]

    exact = rms(x) * (weight.double() + offset)
    unit = torch.finfo(dtype).eps
    once, twice = ((run(wide).double() - exact).abs() / exact.abs().clamp_min(1e-9) for wide in (True, False))
    assert run(True).dtype == dtype
    assert once.max() <= 0.6 * unit + 1e-6
    assert dtype == torch.float32 or twice.max() > once.max()
