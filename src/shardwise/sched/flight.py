"""A step that was made and whose results are not known yet: what it reserved, so that it can be committed or undone."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from shardwise.sched.sequence import Sequence
from shardwise.sched.step import Item, Step


@dataclass(frozen=True, slots=True)
class Swap:
    """A shared page that a sequence was to write: `new` takes the place of `old` at `index` of its table in `group`. The
    sequence's hold of `old` is the step's until the copy was made for certain."""

    group: int
    index: int
    old: int
    new: int


@dataclass(eq=False, slots=True)
class Part:
    """What one step does for one sequence: `count` tokens from `start` on, in its life `life`, the last `guesses` of them
    guessed. One token is drawn for each of `drawn`; `forked`: all but the first of them began with it. `targets`
    log-probabilities are wanted; `scoring` is what the sequence's was before."""

    sequence: Sequence
    start: int
    count: int
    life: int
    swaps: list[Swap]
    scoring: int
    guesses: int = 0
    drawn: list[Sequence] = field(default_factory=list)
    forked: bool = False
    targets: int = 0
    item: Item | None = None

    @property
    def alive(self) -> bool:
        """Whether what it computes goes into the cache that its sequence still has."""
        return self.sequence.life == self.life

    def value(self, source: int | None, targets: tuple[int, ...], guesses: Many[int]) -> Item:
        """As the ranks see it."""
        sequence, request = self.sequence, self.sequence.request
        stop = self.start + self.count - self.guesses
        tokens = (*sequence.tokens[self.start : stop], *guesses)
        pages = tuple([table.pages() for table in sequence.tables])
        drawn = tuple([s.number for s in self.drawn])
        top = request.top if targets else 0
        pool = request.pooled if request.pooled == "mean" or stop == sequence.goal else ""
        return Item(sequence.number, tokens, self.start, sequence.known, pages, source, targets, top, drawn, self.guesses, pool)


@dataclass(eq=False, slots=True)
class Flight:
    """One step: its parts by the number of their sequence, in order."""

    number: int
    groups: int
    parts: dict[int, Part] = field(default_factory=dict)
    tokens: int = 0

    def add(self, part: Part) -> None:
        self.parts[part.sequence.number] = part
        self.tokens += part.count

    def remove(self, sequence: Sequence) -> Part | None:
        """Takes the part of a sequence out again, where it has one."""
        part = self.parts.pop(sequence.number, None)
        if part is not None:
            self.tokens -= part.count
        return part

    def step(self) -> Step:
        """The value that travels."""
        copies: list[list[tuple[int, int]]] = [[] for _ in range(self.groups)]
        items = []
        for part in self.parts.values():
            assert part.item is not None
            items.append(part.item)
            for swap in part.swaps:
                copies[swap.group].append((swap.old, swap.new))
        return Step(self.number, tuple(items), tuple(map(tuple, copies)))
