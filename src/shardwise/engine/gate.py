"""The bound on requests that wait, and the honest answer to those that find it reached: when to come back.

A pure count with the clock passed in. Whoever is refused is promised a place at the time that it is told; it is known by what
it asks for. It knows no requests beyond their numbers, and does not lock: its owner does.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from shardwise.errors import QueueFull

MOST_S = 300
"""The longest that anybody is told to stay away. What would be due later is not promised."""

GRACE_S = 2.0
"""How long after its time a promised place is kept."""

EARLY_S = 0.25
"""How much too early one may come: clocks differ."""

LEAD_S = 2.0
"""How long before its time a place begins to be kept free: others must have left it by then."""

SHARE = 0.75
"""The part of the measured rate that is promised: rates vary, and new ones are to get in as well."""

WINDOW_S, WINDOW_STARTS = 30.0, 256
"""How far back the rate is measured."""


@dataclass(frozen=True, slots=True, order=True)
class Promise:
    """A place for a request of `tokens` prompt tokens, from `due` on."""

    due: float
    order: int
    tokens: int


class Rate:
    """How fast requests start, measured while any wait: an idle engine starts nothing, and that says nothing."""

    def __init__(self) -> None:
        self._busy_s = 0.0
        self._since: float | None = None
        self._starts: deque[tuple[float, int]] = deque([(0.0, 0)], WINDOW_STARTS)

    def tick(self, now: float, waiting: int) -> None:
        """Must be called before `waiting` changes."""
        if self._since is not None:
            self._busy_s += max(0.0, now - self._since)
        self._since = now if waiting else None

    def start(self, tokens: int) -> None:
        """A request of so many prompt tokens starts."""
        self._starts.append((self._busy_s, tokens))

    def per_s(self) -> tuple[float, float]:
        """Requests and prompt tokens a second. Where nothing started yet, one is assumed to be about to."""
        while len(self._starts) > 2 and self._starts[1][0] < self._busy_s - WINDOW_S:
            self._starts.popleft()
        passed_s = max(self._busy_s - self._starts[0][0], 0.01)
        count = max(1, len(self._starts) - 1)
        return count / passed_s, max(1, sum(tokens for _, tokens in self._starts) - self._starts[0][1]) / passed_s


class Gate:
    """At most `limit` requests wait, with at most `tokens` prompt tokens in all; a longer one comes in where nobody waits. None
    is no limit.

    Up to half of the places are kept for those who were promised one. `accepted`, `refused`: counts so far.
    """

    def __init__(self, limit: int | None, tokens: int | None, clock: Callable[[], float]) -> None:
        assert limit is None or limit >= 1
        self.limit, self.tokens = limit, tokens
        self.accepted = self.refused = 0
        self._clock = clock
        self._waiting: dict[int, int] = {}
        self._tokens = 0
        self._rate = Rate()
        self._promises: list[Promise] = []
        self._keys: dict[Hashable, list[Promise]] = {}
        self._owners: dict[int, Hashable] = {}
        self._last = -math.inf

    @property
    def waiting(self) -> int:
        """Requests that were accepted and have not started."""
        return len(self._waiting)

    def enter(self, number: int, tokens: int, key: Hashable) -> None:
        """Request `number` of `tokens` prompt tokens waits from now on; QueueFull where there is no room for it. `key` is what
        it is known by when it comes again."""
        self.knock(tokens, key)
        now = self._clock()
        if (promise := self._due(now, key)) is not None:
            self._drop(promise)
        self.let_in(number, tokens)

    def let_in(self, number: int, tokens: int) -> None:
        """As `enter`, whether there is room or not: for one that was taken in before, by an engine that is gone."""
        self._rate.tick(self._clock(), self.waiting + 1)
        self._waiting[number] = tokens
        self._tokens += tokens
        self.accepted += 1

    def knock(self, tokens: int, key: Hashable) -> None:
        """QueueFull, as `enter` would raise it, where there is no room; else nothing changes."""
        if self.limit is None:
            return
        now = self._clock()
        self._expire(now)
        promise = self._due(now, key)
        if self._room(now, tokens, promise is not None):
            return
        if promise is not None:
            self._drop(promise)
        self.refused += 1
        wait_s = self._promise(now, tokens, key)
        raise QueueFull(
            f"{self.waiting} requests wait already, of at most {self.limit} (--max-queue); come back in {wait_s} s", wait_s
        )

    def start(self, number: int) -> None:
        """It waits no more: it runs."""
        if number in self._waiting:
            self._rate.tick(self._clock(), self.waiting - 1)
            self._rate.start(self._waiting[number])
            self._tokens -= self._waiting.pop(number)

    def leave(self, number: int) -> None:
        """It has ended. One that had started has left already."""
        if number in self._waiting:
            self._rate.tick(self._clock(), self.waiting - 1)
            self._tokens -= self._waiting.pop(number)

    # --- room ---------------------------------------------------------------------------------------------------------

    def _room(self, now: float, tokens: int, promised: bool) -> bool:
        assert self.limit is not None
        due = self._promises[: bisect_left(self._promises, Promise(now + LEAD_S, 0, 0))]
        kept = 0 if promised else min(self.limit // 2, len(due))
        if self.waiting + kept >= self.limit:
            return False
        if self.tokens is None or not self.waiting:
            return True
        kept_tokens = 0 if promised else min(self.tokens // 2, sum(promise.tokens for promise in due))
        return self._tokens + kept_tokens + tokens <= self.tokens

    # --- promises -----------------------------------------------------------------------------------------------------

    def _promise(self, now: float, tokens: int, key: Hashable) -> int:
        """The whole seconds after which there is a place for it, behind all that are promised already."""
        assert self.limit is not None
        self._rate.tick(now, self.waiting)
        requests_s, tokens_s = self._rate.per_s()
        # Of those that are told the same second, no more than half a queue: they may all come at once.
        apart_s = 1 / min(SHARE * requests_s, max(1, self.limit // 2))
        if self.tokens is not None:
            apart_s = max(apart_s, min(tokens, self.tokens) / (SHARE * tokens_s))
        due = max(self._last + apart_s, now + apart_s)
        wait_s = max(1, math.ceil(due - now))
        if wait_s > MOST_S:
            return MOST_S
        self._last = due
        promise = Promise(now + wait_s, self.refused, tokens)
        insort(self._promises, promise)
        self._keys.setdefault(key, []).append(promise)
        self._owners[promise.order] = key
        return wait_s

    def _due(self, now: float, key: Hashable) -> Promise | None:
        """The place that a request was promised for about now."""
        return next((promise for promise in self._keys.get(key, ()) if promise.due <= now + EARLY_S), None)

    def _drop(self, promise: Promise) -> None:
        del self._promises[bisect_left(self._promises, promise)]
        self._forget(promise)

    def _expire(self, now: float) -> None:
        past = bisect_left(self._promises, Promise(now - GRACE_S, 0, 0))
        for promise in self._promises[:past]:
            self._forget(promise)
        del self._promises[:past]

    def _forget(self, promise: Promise) -> None:
        key = self._owners.pop(promise.order)
        left = self._keys[key]
        left.remove(promise)
        if not left:
            del self._keys[key]
