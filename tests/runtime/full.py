"""Sampling by its definition: all logits of one row at hand, one id after another, in plain Python floats."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from shardwise.sched.step import Chosen, Draw, Edit

GOLDEN = 0x9E3779B97F4A7C15
MASK = 2**64 - 1


class Undecided(Exception):
    """A sum is so near to its bound that the order of adding up decides."""


def mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def counter(seed: int, choice: int, position: int) -> int:
    """The 64 bits that stand for a draw."""
    state = 0
    for value in (seed, choice, position):
        state = mix((state + value + GOLDEN) & MASK)
    return state


def noise(start: int, token: int) -> float:
    """Gumbel noise of one id, as float32 rounds it."""
    uniform = ((mix((start + token * GOLDEN) & MASK) >> 12) + 0.5) / 2**52
    return float(torch.tensor(-math.log(-math.log(uniform)), dtype=torch.float32))


def edited(row: torch.Tensor, edit: Edit | None) -> torch.Tensor:
    """One row [vocabulary] after its edit, id by id in float32."""
    if edit is None:
        return row
    row = row.clone()
    for i in edit.seen:
        row[i] = row[i] / edit.repetition if row[i] > 0 else row[i] * edit.repetition
    for i, count in edit.written:
        row[i] = row[i] - edit.frequency * torch.tensor(float(count)) - edit.presence
    for i, value in edit.bias:
        row[i] = row[i] + value
    for i in range(len(row)):
        masked = edit.mask is not None and not (i // 8 < len(edit.mask) and edit.mask[i // 8] >> i % 8 & 1)
        if i in edit.barred or (edit.allowed is not None and i not in edit.allowed) or masked:
            row[i] = -torch.inf
    return row


def left(logits: Sequence[float], draw: Draw) -> list[int]:
    """The ids that min_p, then top_k, then top_p leave; the likeliest first, the lower id first of equal ones."""
    top = max(logits)
    order = sorted((i for i in range(len(logits)) if logits[i] > -math.inf), key=lambda i: (-logits[i], i))
    if draw.min_p > 0:
        order = [i for i in order if logits[i] - top >= draw.temperature * math.log(draw.min_p)]
    if draw.top_k > 0:
        order = order[: draw.top_k]
    if draw.top_p >= 1:
        return order
    weights = [math.exp((logits[i] - top) / draw.temperature) for i in order]
    total, running, kept = math.fsum(weights), 0.0, []
    for i, weight in zip(order, weights, strict=True):
        if abs(running - draw.top_p * total) < 1e-9 * total:
            raise Undecided
        if kept and running >= draw.top_p * total:
            break
        kept.append(i)
        running += weight
    return kept


def choose(row: torch.Tensor, draw: Draw, position: int) -> int:
    """The token that one draw takes of one row [vocabulary]."""
    logits = edited(row, draw.edit).tolist()
    if draw.temperature == 0:
        return min(range(len(logits)), key=lambda i: (-logits[i], i))
    start = counter(draw.seed, draw.choice, position)
    noisy = {i: logits[i] + draw.temperature * noise(start, i) for i in left(logits, draw)}
    return min(noisy, key=lambda i: (-noisy[i], i))


def scored(row: torch.Tensor, token: int, top: int, named: Sequence[int] = ()) -> Chosen:
    """What is to be said of one id, and beside it of the likeliest, or of those that are named."""
    logprobs = row.double().log_softmax(0).tolist()
    order = sorted(range(len(logprobs)), key=lambda i: (-row[i].item(), i))
    return Chosen(token, logprobs[token], order.index(token) + 1, tuple((i, logprobs[i]) for i in named or order[:top]))
