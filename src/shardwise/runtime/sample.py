"""From hidden states to results: what a step draws and scores, in the order in which its items ask for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from shardwise.errors import ALL_BARRED
from shardwise.nn.batch import Batch
from shardwise.runtime.choose import Chooser, Drawn
from shardwise.runtime.edits import edited
from shardwise.runtime.kinds import Place, beside, pieces, places
from shardwise.runtime.parts import Parts
from shardwise.runtime.pool import Final, pool, told
from shardwise.runtime.recent import Recent
from shardwise.runtime.score import Scores, score
from shardwise.sched.step import Chosen, Draw, Item, Result, Step

NOT_FINITE = "the model's logits are not finite numbers"

Logits = Callable[[torch.Tensor], torch.Tensor]
"""Hidden states [rows, hidden] to logits [rows, own ids]."""


@dataclass(frozen=True, slots=True)
class _Forwarded:
    """What a step waits with for its draws: the logits [drawn rows, own ids], the scores of its targets, piece by piece, and
    on the lead rank the hidden states that are pooled."""

    step: Step
    logits: torch.Tensor | None
    scores: tuple[Scores, ...]
    pooled: torch.Tensor | None


class Sampler:
    """`take` after each forward, then `sample`. `uncertain` is of the last one: for how many rows of top_p the candidates were
    not enough, offer by offer; the last number is of those whose logits were gathered."""

    def __init__(self, parts: Parts, final: Final, logits: Logits, recent: Recent) -> None:
        self._parts, self._final, self._logits, self._recent = parts, final, logits, recent
        self._waiting: _Forwarded | None = None
        self.uncertain: tuple[int, ...] = ()

    def take(self, step: Step, hidden: torch.Tensor, batch: Batch) -> None:
        """hidden [T, hidden] of a step. Its targets are scored a piece at a time: their logits are never all there."""
        rows = sum(item.rows - len(item.targets) for item in step.items)
        scores = self._scored(step, hidden, batch) if any(item.targets for item in step.items) else ()
        # The rows that only pad go through the head, whose shape they keep, and no further.
        logits = self._logits(hidden.index_select(0, batch.drawn))[:rows] if rows else None
        pooled = pool(step.items, hidden, self._final) if self._parts.lead else None
        self._waiting = _Forwarded(step, logits, scores, pooled)

    def _scored(self, step: Step, hidden: torch.Tensor, batch: Batch) -> tuple[Scores, ...]:
        """The scores of a step's targets, piece by piece."""
        targets = torch.tensor([token for item in step.items for token in item.targets], dtype=torch.int64)
        top = min(max(item.top for item in step.items if item.targets), self._parts.vocabulary)
        scores = []
        for piece in pieces(len(targets)):
            part = slice(piece.start, piece.stop)
            ids = targets[part].to(hidden.device, non_blocking=True)
            scores.append(score(self._logits(hidden[batch.scored[part]]), ids, top, self._parts))
        return tuple(scores)

    def sample(self, number: int, draws: Sequence[Draw]) -> tuple[Result, ...]:
        """The results on the lead rank, () on others. ValueError where step `number` was not the last to go forward."""
        waiting, self._waiting = self._waiting, None
        if waiting is None or waiting.step.number != number:
            last = "no step" if waiting is None else f"step {waiting.step.number}"
            raise ValueError(f"draws for step {number}, but {last} waits for them: each forward is followed by its sample")
        wanted = places(waiting.step.items, draws)
        flat = [place for each in wanted for place in each]
        chosen: Iterator[Chosen | str] = iter(())
        if waiting.logits is not None:
            drawn = self._choose(waiting.logits, flat)
            self._keep(number, wanted, drawn)
            asked = self._asked(waiting.logits, flat, drawn)
            chosen = iter(_chosen(flat, drawn, asked, self._parts.vocabulary)) if self._parts.lead else chosen
        return tuple(_results(waiting, wanted, chosen)) if self._parts.lead else ()

    def _choose(self, logits: torch.Tensor, flat: list[Place]) -> Drawn:
        rows = [place.row for place in flat]
        if rows != list(range(len(logits))):  # several continuations of one row
            logits = logits[rows]
        changed = edited(logits, [place.edit for place in flat], self._parts.own)
        drawn = Chooser(changed, logits, flat, self._parts).choose()
        self.uncertain = drawn.uncertain
        return drawn

    def _keep(self, number: int, wanted: list[list[Place]], drawn: Drawn) -> None:
        """For the step that takes its tokens from this one: those of sequences that draw one."""
        ends = accumulate(len(each) for each in wanted)
        single = [(end - 1, each[0].draw.sequence) for end, each in zip(ends, wanted, strict=True) if len(each) == 1]
        tokens = drawn.tokens if len(single) == len(wanted) else drawn.tokens[[row for row, _ in single]]
        self._recent.keep(number, [sequence for _, sequence in single], tokens)

    def _asked(self, logits: torch.Tensor, flat: list[Place], drawn: Drawn) -> tuple[Scores, ...]:
        """The scores of those chosen tokens whose draws ask for them."""
        asked = [i for i, place in enumerate(flat) if place.draw.logprobs is not None]
        wanted = beside([flat[i].draw for i in asked], self._parts.vocabulary)
        found = []
        for piece in pieces(len(asked)):
            part = asked[piece.start : piece.stop]
            named = torch.tensor([_padded(flat[i].draw.named, wanted.named) for i in part], dtype=torch.int64)
            named = named.to(logits.device, non_blocking=True)
            found.append(score(logits[[flat[i].row for i in part]], drawn.tokens[part], wanted.top, self._parts, named))
        return tuple(found)


def _chosen(flat: list[Place], drawn: Drawn, asked: tuple[Scores, ...], vocabulary: int) -> list[Chosen | str]:
    """On the host: what was chosen at each place, or why there is nothing."""
    asking = [place.draw for place in flat if place.draw.logprobs is not None]
    wanted = beside(asking, vocabulary)
    scored = iter(_listed(asked, [wanted.of(draw) for draw in asking]))
    found: list[Chosen | str] = []
    for place, token, top in zip(flat, drawn.tokens.tolist(), drawn.tops.tolist(), strict=True):
        chosen = Chosen(token) if place.draw.logprobs is None else next(scored)
        found.append(NOT_FINITE if math.isnan(top) else ALL_BARRED if top == -math.inf else chosen)
    return found


def _padded(ids: tuple[int, ...], size: int) -> tuple[int, ...]:
    """With any id for those that are missing: nobody looks at it."""
    return ids + (0,) * (size - len(ids))


def _listed(scores: tuple[Scores, ...], wanted: list[slice]) -> list[Chosen]:
    """All pieces of scores, one after another; row i with wanted[i] of what is beside it."""
    found: list[Chosen] = []
    for piece in scores:
        found += piece.chosen(wanted[len(found) : len(found) + len(piece.ids)])
    return found


def _results(waiting: _Forwarded, wanted: list[list[Place]], chosen: Iterator[Chosen | str]) -> Iterator[Result]:
    """In the order of the items: the scores of its targets, then each sequence that it draws for; or its hidden states, pooled.
    One result where the sequence is the item's own."""
    items = waiting.step.items
    scored = iter(_listed(waiting.scores, [slice(item.top) for item in items for _ in item.targets]))
    places, pooled = iter(wanted), told(waiting.pooled)
    for item in items:
        if item.pool:
            vector, failed = next(pooled)
            yield Result(item.sequence, error=failed, pooled=vector)
        scores = tuple(next(scored) for _ in item.targets)
        error = NOT_FINITE if any(math.isnan(one.logprob) for one in scores) else None
        if scores and item.sequence not in item.drawn:
            yield Result(item.sequence, (), () if error else scores, error)
        for sequence in item.drawn:
            found = [next(chosen) for _ in next(places)]
            tokens, failed = _kept(item, found)
            own = scores if sequence == item.sequence else ()
            failed = failed or (error if own else None)
            yield Result(sequence, () if failed else tokens, () if failed else own, failed)


def _kept(item: Item, found: list[Chosen | str]) -> tuple[tuple[Chosen, ...], str | None]:
    """What was chosen, up to the first token that is not the one guessed, that one included; or why there is none."""
    drafts = item.tokens[len(item.tokens) - item.drafts :]
    kept: list[Chosen] = []
    for i, one in enumerate(found):
        if isinstance(one, str):
            # Where guesses before it were right, those stand; the next step meets the same row again.
            return tuple(kept), None if kept else one
        kept.append(one)
        if i < len(drafts) and one.token != drafts[i]:
            break
    return tuple(kept), None
