"""When two runs are the same: differences along the same tokens, and how large they may be. It knows no ranks, no servers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from shardwise.verify.trace import Place, Trace

Verdict = Literal["same", "same up to rounding", "differs"]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What rounding may do.

    `logits`: the largest difference of a logit, as a part of the largest absolute logit at its place. `tie`: two best logits
    that are nearer than this part of it may change places. `mean`: the difference of the mean log-likelihood of a token.
    `strays`: the share of places that may be out by more, and `far` how far.
    """

    logits: float
    tie: float
    mean: float
    strays: float = 0.0
    far: float = math.inf


ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "int8": 2.0**-8}
"""Half the spacing of numbers near 1: by so much of itself a number may be rounded. "int8" are activations of quantised
weights, rounded by the largest of their group: a sum that differs in its last bit may round one of them the other way."""


def tolerance(dtype: str, layers: int, *, routed: bool, alike: bool = False) -> Tolerance:
    """What rounding may do to a model of so many layers, all of whose sums over a cut axis may be added in another order.

    float32 rounds by 2^-24 = 6e-8, and random models of 2 to 16 layers come to 1e-6 to 6e-6: 1e-4 leaves room for the deepest
    and is far below what a wrong weight does. Where numbers have 16 bits, every sum and every norm of every layer is rounded,
    and errors add like a random walk, by the root of the layers: random models of 2 and 16 layers come to 8 and 12 times the
    dtype's rounding times that root, trained ones to less, whoever computes them; 16 times it is allowed, and half of it to
    the two that decide on a token. So much may hide a small mistake at a single place, but not its mean: roundings cancel over
    many tokens, and the mean is held to a quarter.

    `routed`: in a mixture, a router's near tie sends a token to another expert, and its logits are then others, by any amount:
    a few places may be out, more of them where 16 bits make near ties likely. They do not count for the mean.

    `alike`: sums over ranks are in float64, so activations are rounded to "int8" alike at every degree, and logits are out by
    what float32 rounds. But one sum in hundreds of millions is not the same float32, and may be the one that decides a scale:
    places from there on may be out by what 8 bits do.
    """
    if dtype == "float32":
        return Tolerance(1e-4, 1e-5, 1e-5, 0.01 if routed else 0.0)
    walk = 16 * ROUNDING[dtype] * math.sqrt(layers)
    if alike:
        return Tolerance(1e-4, 1e-5, 1e-5, 0.1, math.inf if routed else walk)
    return Tolerance(walk, walk / 2, walk / 4, 0.1 if routed else 0.0)


@dataclass(frozen=True, slots=True)
class Token:
    """A greedy token that differs: of text number `text`, as its `position`-th token from 0 on, prompt included.

    `gap` is how far the two best logits were apart there, as a part of the largest; `tie` says whether that is near enough.
    `stray`: all logits of the place are out.
    """

    text: int
    position: int
    ours: int
    theirs: int
    gap: float
    tie: bool
    stray: bool = False


@dataclass(frozen=True, slots=True)
class Comparison:
    """One run held against another, and the `reasons` why it differs.

    `rows` places had their whole logits compared: `worst_abs` and `worst_rel` are None where there are none. `strays` of all
    places are out. `scored` tokens had their log-likelihoods compared: `mean` is ours less theirs, `worst_logprob` the largest
    difference of one. `equal` of `tokens` greedy tokens are, `ties` of the others were near ties.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    rows: int
    worst_abs: float | None
    worst_rel: float | None
    strays: int
    scored: int
    mean: float | None
    worst_logprob: float | None
    tokens: int
    equal: int
    ties: int
    first: Token | None


@dataclass(frozen=True, slots=True)
class _Pair:
    """One place in both runs; `text` and `at` say which, `token` is what follows there in theirs, past the prompt or None."""

    text: int
    at: int
    own: Place
    other: Place
    token: int | None

    @property
    def relative(self) -> float | None:
        """The largest difference of a logit as a part of the largest."""
        if self.own.apart is None or self.own.scale_there is None:
            return None
        return self.own.apart / self.own.scale_there if self.own.scale_there else math.inf * bool(self.own.apart)

    @property
    def score(self) -> float | None:
        """The difference of log-probabilities."""
        if self.own.logprob is None or self.other.logprob is None:
            return None
        return self.own.logprob - self.other.logprob

    def out(self, limit: float) -> bool:
        """Whether it is out by more than `limit`. A log-probability is a logit less what is made of all of them, each of which
        may be out by so much."""
        if (relative := self.relative) is not None:
            return relative > limit
        return self.score is not None and abs(self.score) > 2 * limit * (self.own.scale or 0.0)


def compare(ours: Sequence[Trace], theirs: Sequence[Trace], limits: Tolerance) -> Comparison:
    """Each of our traces, which must go along the tokens of the one of theirs."""
    pairs = list(_pairs(ours, theirs))
    apart = [pair.own.apart for pair in pairs if pair.own.apart is not None]
    relative = [value for pair in pairs if (value := pair.relative) is not None]
    strays = [pair for pair in pairs if pair.out(limits.logits)]
    allowed = len(strays) <= limits.strays * len(pairs) and not any(pair.out(limits.far) for pair in strays)
    scored = [(pair, value) for pair in pairs if (value := pair.score) is not None]
    worst = max((abs(value) for _, value in scored), default=None)
    scores = [value for pair, value in scored if not (allowed and pair.out(limits.logits))]
    mean = math.fsum(scores) / len(scores) if scores else None
    unlike = [token for pair in pairs if (token := _unlike(pair, limits)) is not None]
    wrong = [token for token in unlike if not token.tie and not (token.stray and allowed)]
    tokens = sum(pair.token is not None for pair in pairs)
    reasons = []
    if lost := sum(not pair.own.finite or not pair.other.finite for pair in pairs):
        reasons.append(f"the logits of {lost} of {len(pairs)} places are not finite")
    if not allowed:
        reasons.append(_out(strays, len(pairs), limits))
    if mean is not None and abs(mean) > limits.mean:
        reasons.append(f"the mean log-likelihood is out by {mean:+.2g} a token, and rounding may do {limits.mean:.2g}")
    if wrong:
        reasons.append(f"{len(wrong)} of {tokens} greedy tokens are others, and no near ties")
    exact = not unlike and not worst and not any(apart)
    return Comparison(
        verdict="differs" if reasons else "same" if exact else "same up to rounding",
        reasons=tuple(reasons),
        rows=len(apart),
        worst_abs=max(apart, default=None),
        worst_rel=max(relative, default=None),
        strays=len(strays),
        scored=len(scores),
        mean=mean,
        worst_logprob=worst,
        tokens=tokens,
        equal=tokens - len(unlike),
        ties=sum(token.tie for token in unlike),
        # The first that is no tie tells more than a tie before it.
        first=min(unlike, key=lambda token: (token.tie, token.position - theirs[token.text].prompt), default=None),
    )


def _pairs(ours: Sequence[Trace], theirs: Sequence[Trace]) -> Iterator[_Pair]:
    for text, (mine, yours) in enumerate(zip(ours, theirs, strict=True)):
        for at, (own, other) in enumerate(zip(mine.places, yours.places, strict=True)):
            yield _Pair(text, at, own, other, yours.tokens[at + 1] if at + 1 >= yours.prompt else None)


def _unlike(pair: _Pair, limits: Tolerance) -> Token | None:
    """The greedy token that we would not have chosen after the same history. The gap is theirs, by which they chose; ours
    where they do not say."""
    if pair.token is None or pair.own.best is None or pair.own.best == pair.token:
        return None
    gap = pair.other.gap if pair.other.gap is not None else pair.own.gap
    assert gap is not None
    return Token(pair.text, pair.at + 1, pair.own.best, pair.token, gap, gap < limits.tie, pair.out(limits.logits))


def _out(strays: Sequence[_Pair], places: int, limits: Tolerance) -> str:
    """What is larger than rounding makes it."""
    relative = max((pair.relative for pair in strays if pair.relative is not None), default=None)
    score = max((abs(pair.score) for pair in strays if pair.score is not None), default=0.0)
    how = (
        f"a logit is out by up to {relative:.2g} of the largest"
        if relative is not None
        else f"a log-probability is out by up to {score:.2g}"
    )
    return f"at {len(strays)} of {places} places {how}, and rounding may do {limits.logits:.2g}"
