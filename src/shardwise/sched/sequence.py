"""A request as the scheduler knows it, and each of its continuations: numbers only, no text and no sampling."""

from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from shardwise.sched.events import Emitted, Finish
from shardwise.sched.pages import Node
from shardwise.sched.pooling import Sum
from shardwise.sched.step import Chosen, Pages, Pool
from shardwise.spec.layout import PAGE_TOKENS


@dataclass(frozen=True, slots=True)
class Request:
    """`n` continuations of `prompt`, each of up to `limit` tokens; `limit` 0 computes the prompt alone.

    `ends` are ids that end a continuation once it has `least` tokens more. `scored`: the log-probabilities of the prompt's
    tokens are wanted, with `top` of the likeliest at each place. `pooled`: the prompt's hidden states are wanted, and nothing
    else. Smaller `priority` goes first. `salt` keeps apart what must not share a cache: tenant, adapter, media.
    `deadline` is on the scheduler's clock.
    """

    number: int
    prompt: tuple[int, ...]
    limit: int
    n: int = 1
    ends: frozenset[int] = frozenset()
    least: int = 0
    scored: bool = False
    top: int = 0
    pooled: Pool = ""
    priority: int = 0
    salt: Hashable = ()
    deadline: float | None = None

    @property
    def cached(self) -> int:
        """The most tokens of one continuation that are ever in the cache: the last one drawn never is, and the last of a prompt
        that is only scored need not be."""
        return len(self.prompt) if self.pooled else len(self.prompt) + self.limit - 1


class Table:
    """The pages that one sequence holds in one group: `ids` from page `first` of the sequence on."""

    __slots__ = ("_pages", "first", "ids")

    def __init__(self, first: int = 0, ids: list[int] | None = None) -> None:
        self.first = first
        self.ids = ids if ids is not None else []
        self._pages: Pages | None = None

    @property
    def end(self) -> int:
        """The first page that it does not reach."""
        return self.first + len(self.ids)

    def changed(self) -> None:
        """Must be called after `first` or `ids` were."""
        self._pages = None

    def pages(self) -> Pages:
        """As a step states it."""
        if self._pages is None:
            self._pages = Pages(self.first * PAGE_TOKENS, tuple(self.ids))
        return self._pages


Order = tuple[int, int, int]
"""Who goes first: priority, then arrival, then choice."""


@dataclass(eq=False, slots=True)
class Sequence:
    """One continuation. Its first `computed` tokens are in the cache for certain, its first `issued` when all steps in flight
    are done; those in `sources` will each have drawn one more token then.

    `life` counts how often it lost its cache: a step of an earlier life puts nothing into this one's. `guessing`: a step in
    flight has guesses, so nobody knows yet how many tokens it makes. The log-probabilities of its prompt's tokens before
    `scored` were reported, those before `scoring` will be. `path`: its full pages as nodes of the tree of known prefixes.
    """

    number: int
    request: Request
    choice: int
    order: Order
    tokens: list[int]
    tables: list[Table] = field(repr=False)
    known: int
    forked: bool
    scored: int
    scoring: int
    computed: int = 0
    issued: int = 0
    sources: list[int] = field(default_factory=list)
    life: int = 0
    preempted: int = 0
    guessing: bool = False
    running: bool = False
    finished: bool = False
    pledged: bool = False
    path: list[Node] = field(default_factory=list, repr=False)
    sum: Sum = field(default_factory=Sum, repr=False)

    @property
    def drawn(self) -> int:
        """Tokens that it has, or will have from steps in flight, after its prompt."""
        return self.length - len(self.request.prompt)

    @property
    def length(self) -> int:
        """How many tokens it has, or will have from steps in flight."""
        return len(self.tokens) + len(self.sources)

    @property
    def goal(self) -> int:
        """How many tokens are to be computed, as far as can be known before the steps in flight are done."""
        if self.request.limit == 0:
            return self.request.cached
        length = self.length
        return self.issued if length - len(self.request.prompt) >= self.request.limit else length

    def score(self, start: int, stop: int) -> tuple[int, ...]:
        """The tokens of its prompt whose log-probabilities come with positions `start` to `stop`, and did not before."""
        first, last = max(start + 1, self.scoring), min(stop, len(self.request.prompt) - 1)
        self.scoring = max(self.scoring, last + 1)
        return self.request.prompt[first : last + 1]

    def told(self, tokens: Many[Chosen]) -> list[Emitted]:
        """The last of its tokens, which are new, as its client is told of them: up to its end; what was drawn beyond it is
        nobody's."""
        request, events = self.request, list[Emitted]()
        drawn = len(self.tokens) - len(request.prompt) - len(tokens)
        for chosen in tokens:
            drawn += 1
            finish: Finish | None = "length" if drawn == request.limit else None
            if chosen.token in request.ends and drawn > request.least:
                finish = "stop"
            events.append(Emitted(request.number, self.choice, chosen, finish))
            if finish:
                break
        return events

    @property
    def slots(self) -> int:
        """How many sequences it will be once it has run."""
        return 1 if self.forked else self.request.n
