"""The noise: a function of its key and id alone, finite, and of Gumbel's distribution."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shardwise.runtime.noise import gumbel, key
from tests.runtime.full import GOLDEN, MASK, counter, mix, noise


def unmix(x: int) -> int:
    """What `mix` makes `x` of: it is a bijection of 64 bits."""

    def unshift(x: int, bits: int) -> int:
        found = x
        for _ in range(64 // bits + 1):
            found = x ^ (found >> bits)
        return found

    x = unshift(x, 31) * pow(0x94D049BB133111EB, -1, 2**64) & MASK
    x = unshift(x, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) & MASK
    return unshift(x, 30)


def seed_of(start: int, choice: int, position: int) -> int:
    """The seed whose key for that choice and position is `start`."""
    state = start & MASK
    for value in (position, choice, 0):
        state = (unmix(state) - value - GOLDEN) & MASK
    return state


def column(*keys: int) -> torch.Tensor:
    """Keys [N, 1] of as many 64-bit numbers."""
    return torch.tensor([[k - 2**64 if k >= 2**63 else k] for k in keys], dtype=torch.int64)


@given(st.integers(0, MASK), st.integers(0, 200_000))
def test_noise_agrees_with_plain_python(start: int, token: int) -> None:
    [[found]] = gumbel(column(start), torch.tensor([token])).tolist()
    assert found == pytest.approx(noise(start, token), rel=1e-6, abs=1e-6)


def test_noise_is_that_of_the_ids_wherever_they_stand() -> None:
    keys = column(counter(3, 0, 9), counter(4, 1, 0))
    whole = gumbel(keys, torch.arange(64))
    assert whole[0].tolist() == pytest.approx([noise(counter(3, 0, 9), token) for token in range(64)], rel=1e-6, abs=1e-6)
    assert torch.equal(gumbel(keys, torch.arange(20, 31)), whole[:, 20:31])
    some = torch.tensor([[5, 60, 7], [0, 63, 1]])
    assert torch.equal(gumbel(keys, some), whole.gather(1, some))


@pytest.mark.parametrize("hashed", [0, 1, 2**12, MASK, MASK - 1, MASK - 2**12, 2**63, 2**63 - 1])
def test_extreme_hashes_give_finite_noise(hashed: int) -> None:
    start = unmix(hashed)
    assert mix(start) == hashed
    [[found]] = gumbel(column(start), torch.tensor([0])).tolist()
    assert math.isfinite(found)
    assert -4 < found < 38


def test_keys_differ() -> None:
    triples = [(seed, choice, position) for seed in (0, 1, 2, 2**63 - 1) for choice in range(4) for position in range(100)]
    assert len({key(*triple) for triple in triples}) == len(triples)
    assert all(key(*triple) & MASK == counter(*triple) for triple in triples)
    assert key(seed_of(77, 2, 5), 2, 5) == 77


def test_noise_is_gumbel() -> None:
    found = gumbel(column(*(counter(5, 0, i) for i in range(200))), torch.arange(1000)).double().flatten()
    for level in (-1.0, 0.0, 0.5, 1.0, 3.0):
        share = math.exp(-math.exp(-level))
        spread = math.sqrt(share * (1 - share) / len(found))
        assert (found <= level).double().mean().item() == pytest.approx(share, abs=5 * spread)
