"""What the choice of each token needs to know of the vocabulary: decided from the draw alone, so all ranks decide alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from shardwise.sched.step import Draw, Edit, Item
from shardwise.spec.traffic import Rows

Kind = Literal["greedy", "noisy", "floor", "candidates", "whole"]
"""The likeliest of all; the largest after noise, of all or of those that min_p leaves; one of the likeliest few, which top_k or
top_p leave; or one of more than a few."""

FEW, MANY = 128, 1024
"""Candidates that each rank offers, and offers next where those are not enough of top_p or are fewer than a top_k. Beyond MANY
the logits themselves are gathered."""

PIECE = 64
"""Rows of log-probabilities that are computed at a time, and 1/8 of it rows of whole logits: bounds their memory."""


@dataclass(frozen=True, slots=True)
class Place:
    """One token to choose: after which of the drawn rows, how, and at which position it will stand."""

    row: int
    draw: Draw
    position: int
    edit: Edit | None


def places(items: Sequence[Item], draws: Sequence[Draw]) -> list[list[Place]]:
    """For each draw, in order, the places where it chooses: one, and one more for each draft of its item."""
    wanted = [sequence for item in items for sequence in item.drawn]
    if wanted != [draw.sequence for draw in draws]:
        raise ValueError(f"draws are for sequences {[draw.sequence for draw in draws]}; the step draws for {wanted}")
    found, row, waiting = [], 0, iter(draws)
    for item in items:
        first = item.start + item.count - item.drafts
        drafts = item.tokens[len(item.tokens) - item.drafts :]
        for draw in (next(waiting) for _ in item.drawn):
            edits = [continued(draw.edit, drafts[:i]) for i in range(item.drafts + 1)]
            found.append([Place(row + i, draw, first + i, edit) for i, edit in enumerate(edits)])
        row += item.rows - len(item.targets)
    return found


def continued(edit: Edit | None, tokens: tuple[int, ...]) -> Edit | None:
    """The edit of the row after `tokens` were written as well: penalties know them."""
    if edit is None or not tokens:
        return edit
    if edit.mask is not None:
        raise ValueError("a draw has a mask, which is of one place alone, and its item has guesses")
    written = dict(edit.written)
    for token in tokens:
        written[token] = written.get(token, 0) + 1
    seen = tuple(dict.fromkeys((*edit.seen, *tokens)))
    return replace(edit, seen=seen, written=tuple(written.items()))


def kind(draw: Draw, vocabulary: int) -> Kind:
    """How the token of a draw is found."""
    if draw.temperature == 0:
        return "greedy"
    few = 0 < draw.top_k < vocabulary
    if few or draw.top_p < 1:
        return "whole" if few and draw.top_k > MANY else "candidates"
    return "floor" if draw.min_p > 0 else "noisy"


def offers(draws: Sequence[Draw], vocabulary: int) -> tuple[int, ...]:
    """How many candidates each rank offers, one offer after another, for rows of these draws, all of kind "candidates"."""
    if not draws:
        return ()
    found = (FEW, MANY) if all(draw.top_k <= FEW for draw in draws) else (MANY,)
    return tuple(dict.fromkeys(min(vocabulary, offered) for offered in found))


@dataclass(frozen=True, slots=True)
class Beside:
    """What is told beside the scores of some draws' tokens: so many of the likeliest ids, then so many that are named."""

    top: int
    named: int

    def of(self, draw: Draw) -> slice:
        """What one of the draws wants of it; no more of the likeliest ids than there are."""
        return slice(self.top, self.top + len(draw.named)) if draw.named else slice(min(draw.logprobs or 0, self.top))


def beside(draws: Sequence[Draw], vocabulary: int) -> Beside:
    """As much as the most that any of the draws, all with scores, wants."""
    top = max((draw.logprobs or 0 for draw in draws if not draw.named), default=0)
    return Beside(min(top, vocabulary), max((len(draw.named) for draw in draws), default=0))


def pieces(rows: int, size: int = PIECE) -> list[range]:
    """The rows, at most `size` at a time."""
    return [range(start, min(start + size, rows)) for start in range(0, rows, size)]


def traffic_rows(items: Sequence[Item], draws: Sequence[Draw], vocabulary: int, uncertain: Sequence[int] = ()) -> Rows:
    """What `spec.traffic` asks of a step. `uncertain`: for how many rows of top_p each offer of candidates is too small; it
    depends on the logits, and by default there are none."""
    chosen = [place for each in places(items, draws) for place in each]
    kinds = [kind(place.draw, vocabulary) for place in chosen]
    few = [place.draw for place, one in zip(chosen, kinds, strict=True) if one == "candidates"]
    asked = [place.draw for place in chosen if place.draw.logprobs is not None]
    told = beside(asked, vocabulary)
    targets = sum(len(item.targets) for item in items)
    top = max((item.top for item in items if item.targets), default=0)
    left = [len(few), *uncertain]
    candidates = [(rows, offered) for rows, offered in zip(left, offers(few, vocabulary), strict=False) if rows]
    return Rows(
        targets=tuple((len(piece), min(top, vocabulary)) for piece in pieces(targets)),
        peaks=sum(one in ("floor", "candidates", "whole") for one in kinds),
        best=sum(one in ("greedy", "noisy", "floor") for one in kinds),
        candidates=tuple(candidates),
        whole=tuple(len(piece) for piece in pieces(kinds.count("whole") + sum(uncertain[-1:]), PIECE // 8)),
        asked=tuple((len(piece), told.top + told.named) for piece in pieces(len(asked))),
    )
