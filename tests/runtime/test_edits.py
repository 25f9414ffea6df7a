"""Edits of many rows at once, held against other people's definitions, one row and one id at a time."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from shardwise.runtime.edits import edited
from shardwise.sched.step import Draw, Edit
from shardwise.spec.axes import split
from tests.runtime import full

VOCABULARY = 50
SHARES = [(1.0,), (1.0, 1.0), (3.0, 1.0, 1.0), (1.0, 1e-6, 1.0)]


def random_logits(rows: int) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(rows)) * 3


def joined(logits: torch.Tensor, edits: list[Edit | None], shares: tuple[float, ...]) -> torch.Tensor:
    """Each rank's part after its edits, side by side."""
    spans = split(VOCABULARY, shares)
    return torch.cat([edited(logits[:, span.start : span.stop], edits, span) for span in spans], -1)


@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_repetition_as_transformers_has_it(shares: tuple[float, ...]) -> None:
    history = [[1, 2, 2, 49, 7], [0], [30, 31, 32, 33], [9, 9]]
    logits = random_logits(4)
    edits: list[Edit | None] = [
        Edit(repetition=penalty, seen=tuple(dict.fromkeys(ids)))
        for penalty, ids in zip((1.3, 0.8, 2.0, 1.0), history, strict=True)
    ]
    found = joined(logits, edits, shares)
    for row, (ids, edit) in enumerate(zip(history, edits, strict=True)):
        assert edit is not None
        theirs = RepetitionPenaltyLogitsProcessor(edit.repetition)(torch.tensor([ids]), logits[row : row + 1].clone())
        assert torch.equal(found[row], theirs[0])


@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_presence_and_frequency_as_openai_has_them(shares: tuple[float, ...]) -> None:
    """mu[j] - c[j] · alpha_frequency - float(c[j] > 0) · alpha_presence, as its API reference says on these penalties."""
    written = [[5, 5, 5, 8], [49], [], [0, 1, 0]]
    frequency, presence = [0.5, 0.0, 1.0, -0.7], [0.2, 1.1, 1.0, 0.3]
    logits = random_logits(4)
    counts = torch.stack([torch.bincount(torch.tensor(ids, dtype=torch.int64), minlength=VOCABULARY) for ids in written])
    wanted = logits - torch.tensor(frequency)[:, None] * counts - torch.tensor(presence)[:, None] * (counts > 0)
    edits: list[Edit | None] = [
        Edit(presence=p, frequency=f, written=tuple((i, ids.count(i)) for i in dict.fromkeys(ids)))
        for f, p, ids in zip(frequency, presence, written, strict=True)
    ]
    assert torch.allclose(joined(logits, edits, shares), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_all_parts_in_order(shares: tuple[float, ...]) -> None:
    """Penalties, then biases, then exclusions; rows without an edit, and ids beyond the vocabulary, are let be."""
    logits = random_logits(4)
    whole = Edit(1.5, 0.4, 0.3, (1, 2, 3), ((2, 3), (3, 1)), ((3, 5.0), (4, -2.0)), (4, 6), tuple(range(20)))
    edits = [None, whole, Edit(bias=((7, 1.0),), barred=(50, 10**9)), Edit(allowed=(0, 49, 77))]
    before = logits.clone()
    found = joined(logits, edits, shares)
    assert torch.equal(logits, before)
    for row, edit in enumerate(edits):
        if edit is not None and max((*edit.barred, *(edit.allowed or ())), default=0) >= VOCABULARY:
            kept = [i for i in range(VOCABULARY) if i in (edit.allowed or range(VOCABULARY)) and i not in edit.barred]
            assert torch.isfinite(found[row]).nonzero()[:, 0].tolist() == kept
        assert torch.equal(found[row], full.edited(logits[row], edit))


@pytest.mark.parametrize("shares", [*SHARES, (7.0, 11.0, 32.0), (1.0,) * 7], ids=str)
def test_masks_bit_by_bit(shares: tuple[float, ...]) -> None:
    """Of any length, also shorter and longer than the vocabulary; each rank takes its own bits, wherever they begin."""
    chance = random.Random(3)
    masks = [b"", b"\xff" * 7, b"\x00" * 20, bytes([0b1010]), *(chance.randbytes(n) for n in (1, 6, 7, 9))]
    edits: list[Edit | None] = [None, *(Edit(mask=mask) for mask in masks), Edit(1.3, seen=(1, 2), barred=(3,), mask=b"\x0f")]
    logits = random_logits(len(edits))
    found = joined(logits, edits, shares)
    for row, edit in enumerate(edits):
        assert torch.equal(found[row], full.edited(logits[row], edit))
    assert torch.isfinite(found[4]).nonzero()[:, 0].tolist() == [1, 3]


def test_without_edits_nothing_is_copied() -> None:
    logits = random_logits(2)
    assert edited(logits, [None, None], range(VOCABULARY)) is logits


@pytest.mark.parametrize(
    "draw",
    [Draw(0, 0.7, 0, top_k=5), Draw(0, 1.3, 0, top_p=0.7), Draw(0, 1.0, 0, min_p=0.2), Draw(0, 0.9, 0, 0, 0.8, 12)],
    ids=str,
)
def test_what_is_left_is_what_transformers_leaves(draw: Draw) -> None:
    """The definition that our tests use, held against theirs: temperature, then each narrowing."""
    warpers = LogitsProcessorList()
    if draw.min_p:
        warpers.append(MinPLogitsWarper(draw.min_p))
    if draw.top_k:
        warpers.append(TopKLogitsWarper(draw.top_k))
    if draw.top_p < 1:
        warpers.append(TopPLogitsWarper(draw.top_p))
    for row in random_logits(20):
        theirs = warpers(torch.empty(1, 0, dtype=torch.int64), (row / draw.temperature)[None])[0]
        assert sorted(full.left(row.tolist(), draw)) == torch.isfinite(theirs).nonzero()[:, 0].tolist()
