"""Logits and ids as one number: the order of the numbers is that of the logits, and of the ids where those are equal."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from shardwise.runtime.order import LEAST, falling, largest, likeliest, pack, unpack

FLOATS = st.floats(width=32, allow_nan=False)


@given(st.lists(FLOATS | st.sampled_from([0.0, -0.0, 1.5, -1.5]), min_size=1, max_size=20))
def test_the_order_is_by_logit_then_by_id(values: list[float]) -> None:
    logits, ids = torch.tensor([values]), torch.arange(len(values)) * 7_000_001
    packed = pack(logits, ids)
    assert packed.gt(LEAST).all()
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert packed[0].argsort(descending=True).tolist() == order
    found, places = unpack(packed)
    assert found.tolist() == [values] and places.tolist() == [ids.tolist()]


def test_rows_with_too_few_are_filled() -> None:
    packed = torch.tensor([[3, 9, -4], [1, 0, 2]])
    assert largest(packed, 2).tolist() == [[9, 3], [2, 1]]
    assert largest(packed, 5).tolist() == [[9, 3, -4, LEAST, LEAST], [2, 1, 0, LEAST, LEAST]]
    assert largest(packed[:, :0], 1).tolist() == [[LEAST], [LEAST]]
    assert largest(packed, 0).shape == (2, 0)


def test_the_whole_order_and_its_beginning() -> None:
    """Many equal logits, in rows that are longer than what is made at a time."""
    logits = torch.randn(3, 60_000, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    ids = torch.arange(1000, 61_000)
    whole = falling(pack(logits, ids))
    want, order = logits.sort(descending=True, stable=True)
    values, places = unpack(whole)
    assert torch.equal(values, want) and torch.equal(places, ids[order])
    assert torch.equal(likeliest(logits, ids, 500), whole[:, :500])
    assert likeliest(logits, ids, 0).shape == (3, 0)
