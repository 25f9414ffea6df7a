"""When two runs are the same: differences along the same tokens, and how large they may be. It knows no ranks and no servers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from shardwise.verify.trace import Place, Trace

Verdict = Literal["same", "same up to rounding", "differs"]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What rounding may do in one dtype.

    `logits`: the largest difference of a logit, as a part of the largest absolute logit at its place. `tie`: two best logits
    that are nearer than this part of it may change places. `mean`: the difference of the mean log-likelihood of a token.
    """

    logits: float
    tie: float
    mean: float


TOLERANCES = {
    "float32": Tolerance(1e-4, 1e-5, 1e-4),
    "float16": Tolerance(2.0**-6, 2.0**-8, 2.0**-8),
    "bfloat16": Tolerance(2.0**-3, 2.0**-5, 2.0**-5),
}
"""By dtype. Ranks add what one device adds in another order, so that every sum over a cut axis may be rounded otherwise.

float32 rounds by 2^-24 = 6e-8. Small models come to 1e-6 to 2e-6, because a sum of some thousand products and some dozen
layers add their errors like a random walk; 1e-4 leaves room for the deepest, and is far below what a wrong weight does.
float16 rounds by 2^-11 and bfloat16 by 2^-8 (the spacing of numbers near 1), at every sum and every norm of every layer, and
even the logits themselves come rounded by so much: errors of a few per cent of the largest logit are the dtype's own (two
other libraries are as far apart). A whole logit may be out by that; their mean over many tokens may not, because roundings
cancel, which is why the mean is held to less and finds a wrong model that hides in the noise.
A token that differs is forgiven only where the two best were nearer than `tie`.
"""


@dataclass(frozen=True, slots=True)
class Token:
    """A greedy token that differs: of text number `text`, as its `position`-th token from 0 on, prompt included.

    `gap` is how far the two best logits were apart there, as a part of the largest; `tie` says whether that is near enough.
    """

    text: int
    position: int
    ours: int
    theirs: int
    gap: float
    tie: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """One run held against another. `rows` places had their whole logits compared: `worst_abs` and `worst_rel` are None
    where there are none. `scored` tokens had their log-likelihoods compared: `mean` is ours less theirs, `worst_logprob` the
    largest difference of one. `equal` of `tokens` greedy tokens are, `ties` of the others were near ties. `reasons` say why
    it differs."""

    verdict: Verdict
    reasons: tuple[str, ...]
    rows: int
    worst_abs: float | None
    worst_rel: float | None
    scored: int
    mean: float | None
    worst_logprob: float | None
    tokens: int
    equal: int
    ties: int
    first: Token | None


def compare(ours: Sequence[Trace], theirs: Sequence[Trace], tolerance: Tolerance) -> Comparison:
    """Each of our traces, which must go along the tokens of the one of theirs."""
    pairs = [
        (own, other)
        for mine, yours in zip(ours, theirs, strict=True)
        for own, other in zip(mine.places, yours.places, strict=True)
    ]
    rows = [(own.apart, own.scale_there) for own, _ in pairs if own.apart is not None and own.scale_there is not None]
    worst_abs = max((apart for apart, _ in rows), default=None)
    worst_rel = max((apart / scale if scale else math.inf * bool(apart) for apart, scale in rows), default=None)
    scores = [
        (own.logprob - other.logprob, own.scale or 0.0)
        for own, other in pairs
        if own.logprob is not None and other.logprob is not None
    ]
    mean = math.fsum(apart for apart, _ in scores) / len(scores) if scores else None
    worst = max((abs(apart) for apart, _ in scores), default=None)
    tokens, unlike = sum(len(trace.greedy) for trace in theirs), _unlike(ours, theirs, tolerance.tie)
    ties = sum(token.tie for token in unlike)
    reasons = [*_infinite(pairs), *_beyond(worst_rel, mean, scores, tolerance)]
    if len(unlike) > ties:
        reasons.append(f"{len(unlike) - ties} of {tokens} greedy tokens are others, and no near ties")
    exact = not unlike and not worst and not worst_abs
    return Comparison(
        verdict="differs" if reasons else "same" if exact else "same up to rounding",
        reasons=tuple(reasons),
        rows=len(rows),
        worst_abs=worst_abs,
        worst_rel=worst_rel,
        scored=len(scores),
        mean=mean,
        worst_logprob=worst,
        tokens=tokens,
        equal=tokens - len(unlike),
        ties=ties,
        # The first that is no tie tells more than a tie before it.
        first=min(unlike, key=lambda token: (token.tie, token.position - theirs[token.text].prompt), default=None),
    )


def _unlike(ours: Sequence[Trace], theirs: Sequence[Trace], tie: float) -> list[Token]:
    """The greedy tokens that we would not have chosen after the same history."""
    found = []
    for text, (mine, yours) in enumerate(zip(ours, theirs, strict=True)):
        for at in range(yours.prompt - 1, len(yours.places)):
            own, other, token = mine.places[at], yours.places[at], yours.tokens[at + 1]
            if own.best is not None and own.best != token:
                gap = _gap(own, other)
                found.append(Token(text, at + 1, own.best, token, gap, gap < tie))
    return found


def _gap(own: Place, other: Place) -> float:
    """Theirs, by which they chose; ours where they do not say."""
    gap = other.gap if other.gap is not None else own.gap
    assert gap is not None
    return gap


def _infinite(pairs: Sequence[tuple[Place, Place]]) -> list[str]:
    count = sum(not own.finite or not other.finite for own, other in pairs)
    return [f"the logits of {count} of {len(pairs)} places are not finite"] if count else []


def _beyond(
    worst_rel: float | None, mean: float | None, scores: Sequence[tuple[float, float]], tolerance: Tolerance
) -> list[str]:
    """What is larger than rounding makes it."""
    found = []
    if worst_rel is not None and worst_rel > tolerance.logits:
        found.append(f"a logit is out by {worst_rel:.2g} of the largest, and rounding may do {tolerance.logits:.2g}")
    if mean is not None and abs(mean) > tolerance.mean:
        found.append(f"the mean log-likelihood is out by {mean:+.2g} a token, and rounding may do {tolerance.mean:.2g}")
    # A log-probability is a logit less what is made of all of them, each of which may be out by so much.
    beyond = [apart for apart, scale in scores if abs(apart) > 2 * tolerance.logits * scale]
    if beyond and worst_rel is None:
        found.append(f"the log-probabilities of {len(beyond)} of {len(scores)} tokens are out by up to {max(map(abs, beyond)):.2g}")
    return found
