"""What a model makes of a text, place by place, taken from its logits as they come. Where they come from, it does not know."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Logits = np.ndarray[Any, np.dtype[np.float32]]

KEPT_BYTES = 512 * 2**20
"""The most whole rows of logits that are kept of the run that all others are held against; beyond, only every so many are."""


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt. `text` is None where nobody knows it, or where `ids` are only its beginning."""

    name: str
    ids: tuple[int, ...]
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """What was said of the token that follows one place. None is what is not known there.

    `best` is the likeliest token, `gap` how far its logit is above the next, as a part of `scale`, the largest absolute logit.
    `apart` is the largest difference from the other run's logits, of `scale_there`, theirs. `finite`: all logits are.
    """

    logprob: float | None
    best: int | None = None
    gap: float | None = None
    scale: float | None = None
    apart: float | None = None
    scale_there: float | None = None
    finite: bool = True


@dataclass(eq=False, slots=True)
class Trace:
    """One text under one model: the prompt's tokens, then those that were likeliest, or that another run took.

    `places[i]` is what is said of `tokens[i + 1]`. `kept[i]` are that place's logits, where they are among those kept.
    """

    prompt: int
    tokens: list[int]
    places: list[Place] = field(default_factory=list)
    kept: dict[int, Logits] = field(default_factory=dict)

    @property
    def greedy(self) -> list[int]:
        """What follows the prompt."""
        return self.tokens[self.prompt :]

    def put(self, row: Logits, theirs: Trace | None, stride: int) -> int:
        """Takes in the next place's logits [vocabulary]; the token that follows, the likeliest where none was given.

        They are held against `theirs`, or, where that is None, kept if the place is one in `stride`.
        """
        at = len(self.places)
        other = None if theirs is None else theirs.kept.get(at)
        if at + 1 == len(self.tokens):
            self.tokens.append(int(row.argmax()))
        token = self.tokens[at + 1]
        self.places.append(_place(row, token, other))
        if theirs is None and (at + 1 - self.prompt) % stride == 0:
            self.kept[at] = row.copy()
        return token


def _place(row: Logits, token: int, theirs: Logits | None) -> Place:
    import numpy as np

    if not np.isfinite(row).all():
        return Place(None, finite=False)
    wide = row.astype(np.float64)
    best = int(row.argmax())
    top = wide[best]
    logprob = float(wide[token] - top - np.log(np.exp(wide - top).sum()))
    scale = float(np.abs(wide).max())
    wide[best] = -np.inf
    gap = float((top - wide.max()) / scale) if len(row) > 1 and scale > 0 else 0.0
    if theirs is None:
        return Place(logprob, best, gap, scale)
    apart = float(np.abs(row.astype(np.float64) - theirs).max())
    return Place(logprob, best, gap, scale, apart, float(np.abs(theirs).max()))


def begun(texts: Iterable[Text], theirs: Sequence[Trace] | None) -> list[Trace]:
    """A trace for each text, along the tokens of `theirs` if there are any."""
    if theirs is not None:
        return [Trace(trace.prompt, list(trace.tokens)) for trace in theirs]
    return [Trace(len(text.ids), list(text.ids)) for text in texts]


def stride(texts: Sequence[Text], limit: int, vocabulary: int) -> int:
    """One place in so many has its logits kept, so that they fit KEPT_BYTES."""
    rows = sum(len(text.ids) + limit for text in texts)
    return max(1, -(-rows * 4 * vocabulary // KEPT_BYTES))
