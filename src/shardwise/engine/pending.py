"""A request as its front keeps it: what was asked, and what came of it, so that another engine can go on with it.

The front owns the client, so this is the copy of the journal that counts once the engine's process is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from shardwise.engine import bridge
from shardwise.engine.journal import choices_of
from shardwise.sched.events import Emitted, Ended, Event, Pooled


@dataclass(eq=False, slots=True)
class Pending:
    """A request that has not ended, asked at `since` on the front's clock. `taken`: an engine has taken it in; `answer` is what
    `admitted` waits for until then. `over`: all came that is wanted of it, but for its end. `began` is as in `Written`."""

    asked: bridge.Submit
    sink: Callable[[Event], None]
    since: float
    taken: bool = False
    answer: asyncio.Future[None] | None = None
    over: bool = False
    began: tuple[int, int] | None = None
    _written: list[list[int]] = field(default_factory=list)
    _finished: set[int] = field(default_factory=set)
    _scored: int = 0

    def __post_init__(self) -> None:
        self._written = [[] for _ in range(choices_of(self.asked.params))]

    def note(self, event: Event) -> None:
        """Takes down what came."""
        if isinstance(event, Emitted):
            self._written[event.choice].append(event.chosen.token)
            if event.finish:
                self.finish(event.choice)
        elif isinstance(event, Pooled):
            self.over = True
        elif not isinstance(event, Ended):
            self._scored += len(event.scores)

    def finish(self, choice: int) -> None:
        """Nothing more is wanted of one choice. One that has no token yet goes on, as at the engine."""
        if choice < len(self._written) and self._written[choice]:
            self._finished.add(choice)
            self.over = self.over or len(self._finished) == len(self._written)

    def admit(self) -> None:
        """An engine has taken it in."""
        self.taken = True
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(None)

    def end(self, number: int) -> Ended:
        """The end of one that is over, where no engine is there to say it."""
        return Ended(number, None, *(self.began or (0, 0)))

    def again(self, now: float) -> bridge.Submit:
        """How to ask another engine to go on with it. Not where it is `over`."""
        asked = self.asked
        if asked.timeout_s is not None:
            asked = msgspec.structs.replace(asked, timeout_s=max(0.0, asked.timeout_s - (now - self.since)))
        if not self.taken:
            return asked
        written = tuple(map(tuple, self._written)) if any(self._written) else ()
        finished = tuple(sorted(self._finished))
        told = {"written": written, "finished": finished, "scored": self._scored, "began": self.began}
        return msgspec.structs.replace(asked, again=True, **told)
