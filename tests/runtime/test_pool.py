"""What a step makes for items that ask for hidden states, and for no token."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shardwise.runtime.kinds import PIECE
from shardwise.runtime.pool import NOT_FINITE, pool, told
from shardwise.sched.step import Item, Pages, Pool
from tests.group import Group, even, greedy, layout_of

HIDDEN = 24


def item(count: int, pool: Pool = "", drawn: bool = False) -> Item:
    return Item(count, tuple(range(count)), 0, count, (Pages(0, (1,)),), drawn=(count,) if drawn else (), pool=pool)


def final(x: torch.Tensor) -> torch.Tensor:
    """Stands for a norm: no sum of rows gives what it gives of the sum."""
    assert len(x) <= PIECE, "more rows at once than a piece"
    return x.square() + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_item_gets_its_own(dtype: torch.dtype) -> None:
    items = [item(3, drawn=True), item(150, "mean"), item(5, "last"), item(2), item(1, "mean"), item(1, "last")]
    hidden = torch.randn(sum(each.count for each in items) + 7, HIDDEN, generator=torch.Generator().manual_seed(3)).to(dtype)
    found = pool(items, hidden, final)
    assert found is not None and found.dtype == torch.float32
    rows = (hidden.square() + 1).double()
    wanted = torch.stack([rows[3:153].sum(0), rows[157], rows[160], rows[161]])
    torch.testing.assert_close(found.double(), wanted, rtol=1e-7, atol=0)
    assert [struct.unpack(f"<{HIDDEN}f", vector) for vector, _ in told(found)] == [tuple(row.tolist()) for row in found]


def test_more_last_tokens_than_a_piece_has_rows() -> None:
    items = [item(2, "last") for _ in range(2 * PIECE + 3)]
    found = pool(items, torch.arange(2.0 * len(items))[:, None], final)
    assert found is not None and found[:, 0].tolist() == [(2 * n + 1) ** 2 + 1 for n in range(len(items))]


def test_nobody_asks() -> None:
    assert pool([item(3, drawn=True)], torch.zeros(3, HIDDEN), final) is None and list(told(None)) == []


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("way", ["mean", "last"])
def test_what_is_no_number_fails_its_own_request_alone(way: Pool, value: float) -> None:
    hidden = torch.ones(8, HIDDEN)
    hidden[3, 5] = value
    bad, good = told(pool([item(4, way), item(4, way)], hidden, lambda x: x))
    assert bad == (b"", NOT_FINITE)
    assert good[1] is None and len(good[0]) == 4 * HIDDEN


@pytest.mark.parametrize("degree", [1, 3])
def test_beside_draws(degree: int, checkpoint: Callable[[str], Path]) -> None:
    """The lead rank answers each item in its turn, and what is pooled changes no token."""
    folder = checkpoint("llama")
    with Group(layout_of(folder, even(degree)), folder, sequences=3) as group:
        one, two, three = (group.request(index) for index in range(3))
        for sequence in (one, two, three):
            sequence.tokens[:] = range(3, 40)
        items = one.take(drawn=True), replace(two.take(wants=0), pool="mean"), three.take(drawn=True)
        results = group.results(group.step(*items), greedy(0), greedy(2))
    assert [result.sequence for result in results] == [0, 1, 2]
    assert [len(result.tokens) for result in results] == [1, 0, 1] and results[0].tokens == results[2].tokens
    assert [len(result.pooled) for result in results] == [0, 4 * group.layout.model.hidden, 0]
