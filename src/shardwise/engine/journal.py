"""What is known of every open request: its prompt, its sampling values with the seed resolved, and each token it was given.

Ranks hold nothing but caches, so this is all that is needed to go on with a request after any of them was lost. It belongs to
whoever owns the clients.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from shardwise.engine.grammar import Grammar
from shardwise.sched.events import Emitted, Ended, Event
from shardwise.sched.pooling import PoolingParams
from shardwise.sched.request import SamplingParams
from shardwise.sched.structured import StructuredOutputs
from shardwise.sched.written import NEW, Written

Sink = Callable[[Event], None]
"""Where the events of a request go. Called on the engine's thread: it must neither wait nor raise."""


@dataclass(eq=False, slots=True)
class Continuation:
    """The tokens of one choice so far, and how often each occurs."""

    tokens: list[int] = field(default_factory=list)
    counts: Counter[int] = field(default_factory=Counter)


def choices_of(params: SamplingParams | PoolingParams) -> int:
    """How many continuations a request gets."""
    return params.n if isinstance(params, SamplingParams) else 0


@dataclass(eq=False, slots=True)
class Entry:
    """One open request. `ends` are the ids that end it, `bad` the sequences of ids that it must not write; `grammar` is what
    its answers must follow, compiled of what its `params` say of that. It came at `since`, and is given until `deadline`, on
    the engine's clock. `written` is what an engine before this one had given it. `began` is called with what `Ended` will say
    of its prompt once that is known, as `sink` is."""

    number: int
    prompt: tuple[int, ...]
    params: SamplingParams | PoolingParams
    seed: int
    limit: int
    sink: Sink
    ends: tuple[int, ...] = ()
    bad: tuple[tuple[int, ...], ...] = ()
    priority: int = 0
    tenant: str = ""
    since: float = 0.0
    deadline: float | None = None
    grammar: Grammar | None = None
    written: Written = NEW
    began: Callable[[int, int], None] | None = None
    choices: list[Continuation] = field(default_factory=list)
    ended: bool = False

    def __post_init__(self) -> None:
        before = map(self.written.tokens, range(choices_of(self.params)))
        self.choices = [Continuation(list(tokens), Counter(tokens)) for tokens in before]

    @property
    def structured(self) -> StructuredOutputs | None:
        """The form that its answers are to have."""
        return self.params.structured_outputs if isinstance(self.params, SamplingParams) else None


class Journal:
    """Open requests by number. How many have `ended`, how many of these `failed`, and the `tokens` that were written in all."""

    def __init__(self) -> None:
        self.ended = self.failed = self.tokens = 0
        self.entries: dict[int, Entry] = {}

    def open(self, entry: Entry) -> None:
        """From now on its events are written down and passed on."""
        self.entries[entry.number] = entry

    def note(self, event: Event) -> None:
        """Writes an event down, then passes it on."""
        entry = self.entries[event.request]
        if isinstance(event, Emitted):
            choice = entry.choices[event.choice]
            choice.tokens.append(event.chosen.token)
            choice.counts[event.chosen.token] += 1
            self.tokens += 1
        elif isinstance(event, Ended):
            del self.entries[event.request]
            entry.ended = True
            self.ended += 1
            self.failed += event.error is not None
        entry.sink(event)

    def fail(self, reason: str) -> None:
        """Ends everything that is open, whatever the sinks do."""
        for number in list(self.entries):
            with suppress(Exception):
                self.note(Ended(number, reason))
