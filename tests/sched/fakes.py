"""Ranks that compute no numbers and see every wrong page: a key is the hash of all tokens up to its position.

They execute steps as real ranks do, copies first and items in order, and fail where a query would see another key than the
one of its own history. Tokens are a pure function of history, seed, choice and position. No device and no floating point.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

from shardwise.sched.events import Finish
from shardwise.sched.limits import Limits
from shardwise.sched.pooling import packed
from shardwise.sched.sequence import Request, Sequence
from shardwise.sched.step import SCRATCH, Chosen, Item, Pages, Result, Step
from shardwise.spec.layout import PAGE_TOKENS

VOCABULARY = 7
"""Few ids, so that prompts meet, guesses are right now and then, and ends come up."""

GARBAGE = -1
"""What a page holds that nothing was written to since the ranks began."""


class Broken(AssertionError):
    """A step that real ranks would have computed wrongly."""


def need(holds: object, *words: object) -> None:
    """Broken unless `holds`."""
    if not holds:
        raise Broken(" ".join(map(str, words)))


@dataclass
class Story:
    """One continuation as it is when its request runs alone: `tokens` without end, and `hashes[i]` of the first i of them."""

    request: Request
    choice: int
    limits: Limits
    tokens: list[int] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Salts are another history: a prefix found under a wrong one is a wrong key.
        self.hashes.append(hash(self.request.salt))
        for token in self.request.prompt:
            self.append(token)

    def append(self, token: int) -> None:
        self.tokens.append(token)
        self.hashes.append(hash((self.hashes[-1], token)))

    def reach(self, length: int) -> None:
        """Makes sure of `length` tokens."""
        while len(self.tokens) < length:
            place = len(self.tokens)
            self.append(hash((self.hashes[place], self.request.number, self.choice, place)) % VOCABULARY)

    @cached_property
    def told(self) -> tuple[list[int], Finish]:
        """The tokens that the client gets when nobody interferes, and why they end."""
        start = len(self.request.prompt)
        for place in range(start, start + self.request.limit):
            self.reach(place + 1)
            if self.tokens[place] in self.request.ends and place + 1 - start > self.request.least:
                return self.tokens[start : place + 1], "stop"
        return self.tokens[start : start + self.request.limit], "length"

    def score(self, place: int) -> float:
        """The log-probability of the token at `place`: another one after every history."""
        return -float(self.hashes[place] % 1009)

    def state(self, place: int) -> list[float]:
        """The hidden state of the token at `place`: small whole numbers, whose sums are exact; they count tokens and places."""
        return [1.0, float(place), float(self.hashes[place + 1] % 1009)]

    def vector(self, start: int, stop: int) -> bytes:
        """The sum of the states from `start` to `stop`."""
        return packed(map(sum, zip(*(self.state(place) for place in range(start, stop)), strict=True)))

    def angles(self, known: int, place: int) -> object:
        """What besides the tokens a key at `place` depends on, where the angles of `known` tokens were used."""
        if self.limits.turns:
            return tuple(known > end for end in self.limits.turns)
        if self.limits.shared is not None and max(known, place + 1) > self.limits.shared:
            return max(known, place + 1)
        return None

    def keys(self, known: int, start: int, stop: int) -> list[int]:
        """The right keys of the positions from `start` to `stop`."""
        if not self.limits.turns and self.limits.shared is None:
            return self.hashes[start + 1 : stop + 1]
        return [self.turned(self.hashes[place + 1], known, place) for place in range(start, stop)]

    def guessed(self, known: int, start: int, drafts: Many[int]) -> list[int]:
        """The keys of `drafts` after the first `start` tokens."""
        before = list(accumulate(drafts, lambda past, token: hash((past, token)), initial=self.hashes[start]))
        return [self.turned(past, known, place) for place, past in enumerate(before[1:], start)]

    def turned(self, past: int, known: int, place: int) -> int:
        angles = self.angles(known, place)
        return past if angles is None else hash((past, angles))


@dataclass
class Ranks:
    """All ranks as one. `checked` off leaves out what costs time with the length of a context."""

    pages: tuple[int, ...]
    windows: tuple[int | None, ...]
    limits: Limits
    checked: bool = True
    stories: dict[int, Story] = field(default_factory=dict)
    contents: list[list[list[int]]] = field(default_factory=list)
    pending: list[Step] = field(default_factory=list)
    made: dict[int, tuple[Result, ...]] = field(default_factory=dict)
    draws: dict[tuple[int, int], int] = field(default_factory=dict)
    last: int = 0

    def __post_init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """New ranks: nothing is in any page."""
        self.contents = [[[GARBAGE] * PAGE_TOKENS for _ in range(count)] for count in self.pages]
        self.pending.clear()
        self.made.clear()
        self.draws.clear()

    # --- a step comes -------------------------------------------------------------------------------------------------

    def submit(self, step: Step, alive: Iterable[Sequence] = ()) -> None:
        """A step to be computed after those that came before it; `stories` must have its sequences. `alive`: who may hold
        pages now."""
        need(step.number > self.last, f"step {step.number} after step {self.last}")
        self.last = step.number
        need(0 < step.tokens <= self.limits.tokens, f"{step.tokens} tokens in one step")
        numbers = [item.sequence for item in step.items]
        need(len(set(numbers)) == len(numbers) <= self.limits.sequences, "items of step", step.number, numbers)
        for item in step.items:
            self._shape(item)
        if self.checked:
            self._private(step, alive)
        self.pending.append(step)

    def results(self, number: int) -> tuple[Result, ...]:
        """What step `number` made; it and all before it are computed now, if they were not before."""
        self.compute(number)
        return self.made.pop(number)

    def compute(self, number: int) -> None:
        """Computes what came, up to step `number`."""
        while self.pending and self.pending[0].number <= number:
            step = self.pending.pop(0)
            self._copy(step)
            self.made[step.number] = tuple(result for item in step.items for result in self._item(step.number, item))

    def drop(self, number: int) -> None:
        """Nobody wants step `number` and later ones; those that were not begun never will be."""
        self.pending = [step for step in self.pending if step.number < number]
        self.made = {n: results for n, results in self.made.items() if n < number}

    # --- what must hold -----------------------------------------------------------------------------------------------

    def _shape(self, item: Item) -> None:
        """Page tables reach over all that is written, and all that is seen from there."""
        stop = item.start + item.count
        need(stop <= self.stories[item.sequence].request.cached, "further than the request ever goes", item)
        need(len(item.pages) == len(self.pages), "a table for each group", item)
        for pages, window, count in zip(item.pages, self.windows, self.pages, strict=True):
            seen = 0 if window is None else max(0, item.start - window + 1)
            ids = pages.ids
            need(pages.first % PAGE_TOKENS == 0 and pages.first <= seen, "the table begins late", item)
            need(pages.first + len(ids) * PAGE_TOKENS >= stop, "the table ends early", item)
            need(min(ids) > SCRATCH and max(ids) < count, "SCRATCH, or no page at all", item)
            need(len(set(ids)) == len(ids), "a page twice", item)
        need(item.source is None or not item.tokens, "both ids and a source", item)
        need(not item.drafts or len(item.drawn) == 1, "guesses for several", item)

    def _private(self, step: Step, alive: Iterable[Sequence]) -> None:
        """What is written is seen by nobody else, but for those who begin with it; copies are of one time."""
        seen: dict[tuple[int, int], set[int]] = {}
        for sequence in alive:
            for group, table in enumerate(sequence.tables):
                for page in table.ids:
                    seen.setdefault((group, page), set()).add(sequence.number)
        for group, copies in enumerate(step.copies):
            new = [to for _, to in copies]
            need(len(set(new)) == len(new) and not {old for old, _ in copies} & set(new), "copies meet", step.number, copies)
            need(all(len(seen.get((group, to), ())) == 1 for to in new), "a copy that is shared", step.number, copies)
        for item in step.items:
            for group, pages in enumerate(item.pages):
                for page in written(item, pages):
                    others = seen.get((group, page), set()) - {item.sequence, *item.drawn}
                    need(not others, f"item of {item.sequence} writes page {page} of group {group}, which {others} see")

    # --- computing ----------------------------------------------------------------------------------------------------

    def _copy(self, step: Step) -> None:
        need(len(step.copies) == len(self.pages), "copies of each group")
        for contents, copies in zip(self.contents, step.copies, strict=True):
            for old, new in copies:
                need(SCRATCH not in (old, new), "SCRATCH is copied")
                contents[new][:] = contents[old]

    def _item(self, number: int, item: Item) -> list[Result]:
        story = self.stories[item.sequence]
        stop = item.start + item.count - item.drafts
        tokens = list(item.tokens)
        if item.source is not None:
            need((item.source, item.sequence) in self.draws, "nothing was drawn by the source", item)
            tokens = [self.draws[item.source, item.sequence]]
        story.reach(stop + item.drafts + 1)
        own = story.tokens[item.start : stop]
        need(tokens[: len(own)] == own, f"tokens {tokens}, but the history goes on with {own}", item)
        self._angles(story, item, stop)
        if not self.checked:
            return self._answers(number, item, story, stop)
        keys = story.keys(item.known, item.start, stop)
        keys += story.guessed(item.known, stop, tokens[len(own) :])
        for group, pages in enumerate(item.pages):
            self._write(group, pages, item.start, keys)
            self._see(group, pages, story, item, stop)
        return self._answers(number, item, story, stop)

    def _angles(self, story: Story, item: Item, stop: int) -> None:
        """Who draws must turn keys as it would alone."""
        prompt = len(story.request.prompt)
        if item.drawn and self.limits.turns:
            for place in range(stop - 1, stop + item.drafts):
                wanted = story.angles(max(prompt, place + 1), place)
                need(story.angles(item.known, place) == wanted, f"angles of {item.known} at {place}", item)
        elif self.limits.shared is not None:
            need(item.known == prompt, f"angles of {item.known} after a prompt of {prompt}", item)

    def _write(self, group: int, pages: Pages, start: int, keys: list[int]) -> None:
        contents = self.contents[group]
        for place, key in enumerate(keys, start - pages.first):
            contents[pages.ids[place // PAGE_TOKENS]][place % PAGE_TOKENS] = key

    def _see(self, group: int, pages: Pages, story: Story, item: Item, stop: int) -> None:
        """Every position that its first token sees, and all after it, hold the keys of its own history."""
        window = self.windows[group]
        first = 0 if window is None else max(0, item.start - window + 1)
        held = [key for page in pages.ids for key in self.contents[group][page]]
        held = held[first - pages.first : stop - pages.first]
        wanted = story.keys(item.known, first, stop)
        if held != wanted:
            places = [first + i for i, (a, b) in enumerate(zip(held, wanted, strict=True)) if a != b]
            raise Broken(f"keys at {places} of group {group} are not those of {story.request} choice {story.choice}: {item}")

    def _answers(self, number: int, item: Item, story: Story, stop: int) -> list[Result]:
        last = stop - 1 if item.drawn else stop
        places = range(last - len(item.targets) + 1, last + 1)
        need(item.targets == tuple(story.tokens[place] for place in places), "targets are other tokens", item)
        need(not places or places[0] > item.start, "targets of tokens that are not in the item", item)
        scores = tuple(Chosen(story.tokens[place], story.score(place)) for place in places)
        if item.pool:
            need(not item.drawn and not item.targets, "pooled, and something else", item)
            need(item.pool == "mean" or stop == len(story.request.prompt), "not the last token", item)
            return [Result(item.sequence, pooled=story.vector(item.start if item.pool == "mean" else stop - 1, stop))]
        if not item.drawn:
            return [Result(item.sequence, (), scores)] if scores else []
        drafts = item.tokens[item.count - item.drafts :] if item.drafts else ()
        answers = []
        for sequence in item.drawn:
            own = self.stories[sequence]
            own.reach(stop + item.drafts + 1)
            kept = 0
            while kept < item.drafts and drafts[kept] == own.tokens[stop + kept]:
                kept += 1
            drawn = tuple(map(Chosen, own.tokens[stop : stop + kept + 1]))
            self.draws[number, sequence] = drawn[-1].token
            answers.append(Result(sequence, drawn, scores if sequence == item.sequence else ()))
        return answers


def written(item: Item, pages: Pages) -> tuple[int, ...]:
    """The pages of a table that an item writes."""
    first, last = item.start - pages.first, item.start + item.count - 1 - pages.first
    return pages.ids[first // PAGE_TOKENS : last // PAGE_TOKENS + 1]
