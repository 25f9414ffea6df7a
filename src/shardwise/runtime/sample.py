"""Tokens from logits, the whole batch at once.

Randomness is counted, not drawn: the noise of a token is a hash of (seed, choice, position, token), so a request gives the
same tokens alone or in a batch, at any degree, and again after a rank was lost. Gumbel's trick (arg max of logits plus noise)
makes a sample out of it, which needs no running sum over the vocabulary, whose rounding would depend on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from shardwise.sched.step import Chosen, Draw, Item, Result

MASK = 2**64 - 1
Column = Callable[[list[float]], torch.Tensor]


def sample(logits: torch.Tensor, items: Sequence[Item]) -> tuple[Result, ...]:
    """logits [N, vocabulary] in float32, one row for each item that has a `draw`, in order. The next token of each."""
    drawn = [(item, item.draw) for item in items if item.draw]
    if not drawn:
        return ()
    finite = torch.isfinite(logits).all(-1).tolist()
    logits = torch.nan_to_num(logits)
    logprobs = torch.log_softmax(logits, -1)
    draws = [draw for _, draw in drawn]
    tokens = _choose(logits, draws, [item.start + len(item.tokens) for item, _ in drawn])
    own = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
    most = min(max((draw.logprobs or 0) for draw in draws), logits.shape[1])
    top = logprobs.topk(most, -1) if most else None
    results = []
    for row, (item, draw) in enumerate(drawn):
        if not finite[row]:
            results.append(Result(item.request, None, "the model's logits are not finite numbers"))
            continue
        count = draw.logprobs or 0
        best = zip(top.indices[row, :count].tolist(), top.values[row, :count].tolist(), strict=True) if top else ()
        results.append(Result(item.request, Chosen(int(tokens[row]), own[row], tuple(best))))
    return tuple(results)


def _choose(logits: torch.Tensor, draws: Sequence[Draw], positions: Sequence[int]) -> torch.Tensor:
    """Token ids [N]: the largest logit where the temperature is 0, else the largest of scaled logit plus noise."""
    if any(draw.barred for draw in draws):
        logits = logits.clone()
        for row, draw in enumerate(draws):
            if draw.barred:
                logits[row, list(draw.barred)] = -torch.inf
    if all(draw.temperature == 0 for draw in draws):
        return logits.argmax(-1)

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=logits.device)[:, None]

    temperature = column([draw.temperature for draw in draws])
    # Seen from the largest, which stays 0 however small the temperature is: a ratio of many infinities has no largest.
    scaled = (logits - logits.max(-1, keepdim=True).values) / torch.where(temperature == 0, 1.0, temperature)
    scaled = _narrow(scaled, draws, column)
    keys = [key(draw.seed, draw.choice, position) for draw, position in zip(draws, positions, strict=True)]
    noisy = scaled + gumbel(keys, logits.shape[1], logits.device)
    return torch.where(temperature[:, 0] == 0, logits.argmax(-1), noisy.argmax(-1))


def _narrow(logits: torch.Tensor, draws: Sequence[Draw], column: Column) -> torch.Tensor:
    """Puts minus infinity where min_p, top_k or top_p exclude a token; the likeliest always stays."""
    vocabulary = logits.shape[1]
    if any(draw.min_p for draw in draws):
        floor = logits.max(-1, keepdim=True).values + column([draw.min_p for draw in draws]).log()
        logits = logits.masked_fill(logits < floor, -torch.inf)
    if all(draw.top_k <= 0 and draw.top_p >= 1 for draw in draws):
        return logits
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(vocabulary, device=logits.device)
    kept = column([float(draw.top_k) if draw.top_k > 0 else float(vocabulary) for draw in draws])
    ordered = ordered.masked_fill(rank >= kept, -torch.inf)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    # A top_p of 1 keeps all, even where the rounded sum reaches 1 early: a row must not depend on its neighbours' settings.
    bound = column([draw.top_p if draw.top_p < 1 else torch.inf for draw in draws])
    ordered = ordered.masked_fill((before >= bound) & (rank > 0), -torch.inf)
    return torch.empty_like(logits).scatter_(1, order, ordered)


def key(seed: int, choice: int, position: int) -> int:
    """64 bits that differ for each (seed, choice, position): splitmix64's finaliser, chained."""
    state = 0
    for value in (seed, choice, position):
        state = _mix((state + value + 0x9E3779B97F4A7C15) & MASK)
    return state


def _mix(x: int) -> int:
    """splitmix64's finaliser (Steele, Lea, Flood 2014, https://doi.org/10.1145/2714064.2660195)."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def gumbel(keys: Sequence[int], vocabulary: int, device: torch.device) -> torch.Tensor:
    """Standard Gumbel noise [N, vocabulary], float32: row n is a function of keys[n] and the token id alone."""
    start = torch.tensor([_signed(k) for k in keys], dtype=torch.int64, device=device)[:, None]
    x = start + torch.arange(vocabulary, dtype=torch.int64, device=device) * _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    x = x ^ _shift(x, 31)
    # 52 bits, moved by half a step off 0 and 1, where a logarithm has no value. (With 53 the largest would round to 1.)
    uniform = (_shift(x, 12).double() + 0.5) / 2.0**52
    return (-torch.log(-torch.log(uniform))).float()


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """A logical shift to the right: torch's own copies the sign."""
    return (x >> bits) & (2 ** (64 - bits) - 1)
