"""What a request was given already by an engine that is gone, so that another one can go on where that one ended."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass

from shardwise.errors import RequestError
from shardwise.sched.sequence import Request, Sequence


@dataclass(frozen=True, slots=True)
class Written:
    """`choices`: the tokens of each choice, or nothing where none has one; `finished`: the choices that came to their end.
    `scored` log-probabilities of the prompt's tokens were told. `began`: what `Ended` is to say of its `prefilled` and
    `cached`; None where it never ran, and so was given nothing."""

    choices: tuple[tuple[int, ...], ...] = ()
    finished: tuple[int, ...] = ()
    scored: int = 0
    began: tuple[int, int] | None = None

    @property
    def begun(self) -> bool:
        """Whether the choices go on each by itself: the first tokens of all are drawn in one step."""
        return any(self.choices)

    def tokens(self, choice: int) -> tuple[int, ...]:
        """Those of one choice."""
        return self.choices[choice] if choice < len(self.choices) else ()

    def texts(self, request: Request) -> Iterator[tuple[int, list[int]]]:
        """The choices that go on each by itself, and all tokens of each; before that, the first alone."""
        for choice in range(request.n if self.begun else 1):
            yield choice, [*request.prompt, *self.tokens(choice)]

    def given_to(self, own: Many[Sequence]) -> list[Sequence]:
        """Has the sequences of a request, in order, stand where they stood; those that are not finished."""
        for sequence in own:
            sequence.forked |= self.begun
            sequence.finished = sequence.choice in self.finished
        if own[0].request.scored:
            own[0].scored = own[0].scoring = 1 + self.scored
        return [sequence for sequence in own if not sequence.finished]

    def check(self, request: Request, vocab: int) -> None:
        """RequestError where the request cannot have been given that."""
        if self.choices and len(self.choices) != request.n:
            raise RequestError(f"{len(self.choices)} choices were written of a request with {request.n}")
        for choice, tokens in enumerate(self.choices):
            most = request.limit if choice in self.finished else request.limit - 1
            if len(tokens) > most:
                raise RequestError(f"choice {choice} goes on after {len(tokens)} tokens; it may have {request.limit}")
            if any(not 0 <= token < vocab for token in tokens):
                raise RequestError(f"choice {choice} has a token that the model does not; its ids are below {vocab}")
        if any(not 0 <= choice < request.n for choice in self.finished):
            raise RequestError(f"choices {list(self.finished)} are finished of a request with {request.n}")
        if self.began is None and (any(self.choices) or self.scored):
            raise RequestError("tokens were written of a request that never ran")
        if not 0 <= self.scored < len(request.prompt):
            raise RequestError(f"{self.scored} tokens of a prompt of {len(request.prompt)} were scored; the first never is")
        if len(set(self.finished)) == request.n:
            raise RequestError("all choices are finished: there is nothing to go on with")


NEW = Written()
"""Of a request that was given nothing yet."""
