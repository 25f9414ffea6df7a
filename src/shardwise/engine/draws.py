"""From what a client asked for, and what it was given so far, to how its next token is to be drawn: numbers only.

Most draws are the same at every step. Those that depend on the tokens before them have to wait until these are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from shardwise.engine.journal import Entry
from shardwise.sched.request import SamplingParams
from shardwise.sched.step import Draw, Edit

PLAIN = Edit()


class Draws:
    """The draws of one request."""

    __slots__ = ("_bias", "_entry", "_fixed", "_matchers", "_params", "_seen", "_single", "_waits", "_words")

    def __init__(self, entry: Entry, params: SamplingParams) -> None:
        """`params` are those of the entry, which may ask for something else than draws."""
        self._entry, self._params = entry, params
        self._bias = tuple(sorted((params.logit_bias or {}).items()))
        self._single = tuple(sorted({word[0] for word in entry.bad if len(word) == 1}))
        self._words = tuple(word for word in entry.bad if len(word) > 1)
        self._matchers = [entry.grammar.matcher(entry.ends) for _ in entry.choices] if entry.grammar else []
        prompt = dict.fromkeys(entry.prompt) if params.repetition_penalty != 1 else {}
        self._seen = [_Seen(prompt) for _ in entry.choices] if params.repetition_penalty != 1 else []
        self._waits = bool(self._words or self._matchers) or _penalises(params)
        self._fixed: dict[tuple[int, bool], Draw] = {}

    def known(self, choice: int, count: int) -> bool:
        """Whether the draw after `count` tokens of a choice can be stated already."""
        return not self._waits or len(self._entry.choices[choice].tokens) >= count

    def draw(self, sequence: int, choice: int, count: int) -> Draw:
        """How to draw the token after `count` tokens of a choice, for the scheduler's `sequence`."""
        early = count < self._params.min_tokens
        fixed = self._fixed.get((choice, early))
        if fixed is None or fixed.sequence != sequence:
            fixed = self._fixed[choice, early] = self._draw(sequence, choice, early)
        return replace(fixed, edit=self._after(choice, fixed.edit or PLAIN, early)) if self._waits else fixed

    @property
    def failed(self) -> str | None:
        """Why the grammar cannot be followed, where that is so."""
        reason = next((matcher.failed for matcher in self._matchers if matcher.failed), None)
        form = self._params.structured_outputs
        return f"{form.said}: {reason}" if form and reason else None

    def complete(self, choice: int, token: int) -> bool:
        """Whether nothing can be added to a choice once `token` is, and it has no ends that could say so."""
        if not self._matchers or self._entry.ends:
            return False
        self._matchers[choice].follow([*self._entry.choices[choice].tokens, token])
        return self._matchers[choice].finished()

    def _draw(self, sequence: int, choice: int, early: bool) -> Draw:
        params = self._params
        # Of its ends a grammar decides.
        barred = tuple(sorted({*self._single, *(self._entry.ends if early and not self._matchers else ())}))
        allowed = tuple(params.allowed_token_ids) if params.allowed_token_ids is not None else None
        edit = Edit(bias=self._bias, barred=barred, allowed=allowed)
        return Draw(
            sequence=sequence,
            temperature=params.temperature,
            seed=self._entry.seed,
            choice=choice,
            top_p=params.top_p,
            top_k=params.top_k,
            min_p=params.min_p,
            logprobs=params.logprobs,
            edit=None if edit == PLAIN else edit,
            named=tuple(params.logprob_token_ids or ()),
        )

    def _after(self, choice: int, edit: Edit, early: bool) -> Edit:
        """The edit with what the tokens so far make of it."""
        params, own = self._params, self._entry.choices[choice]
        barred = set(edit.barred)
        for word in self._words:
            if tuple(own.tokens[1 - len(word) :]) == word[:-1]:
                barred.add(word[-1])
        written = tuple(own.counts.items()) if params.presence_penalty or params.frequency_penalty else ()
        seen = self._seen[choice].after(own.tokens) if self._seen else ()
        mask = None
        if self._matchers:
            self._matchers[choice].follow(own.tokens)
            mask = self._matchers[choice].mask(early=early)
        return replace(
            edit,
            repetition=params.repetition_penalty,
            presence=params.presence_penalty,
            frequency=params.frequency_penalty,
            seen=seen,
            written=written,
            barred=tuple(sorted(barred)),
            mask=mask,
        )


class _Seen:
    """The ids of a prompt, all choices' own, and of one choice's answer. Each token is looked at once: prompts are long, and
    this is asked before each token."""

    __slots__ = ("_all", "_ids", "_prompt", "_used")

    def __init__(self, prompt: Mapping[int, None]) -> None:
        self._prompt, self._used = prompt, 0
        self._ids: dict[int, None] = {}
        self._all = tuple(prompt)

    def after(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """The ids once `tokens`, all so far, are written."""
        new = [token for token in tokens[self._used :] if token not in self._prompt and token not in self._ids]
        self._used = len(tokens)
        if new:
            self._all += tuple(dict.fromkeys(new))
            self._ids.update(dict.fromkeys(new))
        return self._all


def _penalises(params: SamplingParams) -> bool:
    return bool(params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1)
