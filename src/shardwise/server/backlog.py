"""Tokens of one request that wait until somebody reads them. Few stay as they came; many are packed, at a tenth of the size.

Tokens are counted and weighed, so that whoever holds this can end a request that nobody reads. It knows no engine and no loop.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from shardwise.sched.events import Emitted, Event, Finish
from shardwise.sched.step import Chosen

LOOSE = 16
"""So many tokens are kept as they came, and packed together when they are more."""

PORTION = 64
"""So many tokens are taken at once, about: what a reader makes of them is written in one piece."""

Entry: TypeAlias = tuple[int, Event]
"""The index of a prompt, and what happened to it."""

_Token: TypeAlias = tuple[int, int, int, int, float, int, tuple[tuple[int, float], ...], Finish | None]

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(list[_Token])


@dataclass(frozen=True, slots=True)
class _Pack:
    """Tokens as bytes; how many."""

    data: bytes
    count: int


class Backlog:
    """Entries in their order, from any thread to any other. Those that are no tokens are neither packed nor counted: they are
    few, and nobody who reads slowly can make them more."""

    def __init__(self, tokens: int, most_bytes: int, loose: int = LOOSE) -> None:
        """At most so many tokens, and so many packed bytes. `loose`: of a request with many choices, what a
        step makes is not to be packed."""
        self._tokens, self._most_bytes, self._loose = tokens, most_bytes, loose
        self._older: deque[Entry | _Pack] = deque()
        self._newest: list[tuple[int, Emitted]] = []
        self._count = self._bytes = 0
        self._lock = threading.Lock()
        self.full = False
        """Whether more came than it takes. It holds nothing any more then."""

    def __bool__(self) -> bool:
        """Whether something waits."""
        return bool(self._older or self._newest)

    def put(self, index: int, event: Event) -> None:
        """One more entry; none is kept once this is `full`."""
        with self._lock:
            if self.full:
                return
            if not isinstance(event, Emitted):
                self._older += self._newest
                self._newest = []
                self._older.append((index, event))
                return
            self._newest.append((index, event))
            self._count += 1
            if len(self._newest) >= self._loose:
                pack = _packed(self._newest)
                self._older.append(pack)
                self._bytes += len(pack.data)
                self._newest = []
            if self._count > self._tokens or self._bytes > self._most_bytes:
                self.full = True
                self._older.clear()
                self._newest = []

    def take(self) -> Sequence[Entry]:
        """The oldest entries, a portion of them; none where nothing waits."""
        packs: list[Entry | _Pack] = []
        with self._lock:
            if not self._older and len(self._newest) <= PORTION:  # a reader that keeps up
                newest, self._newest = self._newest, []
                self._count -= len(newest)
                return newest
            found = 0
            while self._older and found < PORTION:
                entry = self._older.popleft()
                packs.append(entry)
                if isinstance(entry, _Pack):
                    found += entry.count
                    self._count -= entry.count
                    self._bytes -= len(entry.data)
                else:
                    found += 1
                    self._count -= isinstance(entry[1], Emitted)
            if (room := PORTION - found) > 0:
                packs += self._newest[:room]
                self._count -= len(self._newest[:room])
                del self._newest[:room]
        entries: list[Entry] = []
        for entry in packs:
            if isinstance(entry, _Pack):
                entries += _unpacked(entry)
            else:
                entries.append(entry)
        return entries


def _packed(entries: list[tuple[int, Emitted]]) -> _Pack:
    rows: list[_Token] = []
    for index, event in entries:
        chosen = event.chosen
        rows.append(
            (index, event.request, event.choice, chosen.token, chosen.logprob, chosen.rank, chosen.top, event.finish)
        )  # fmt: skip
    return _Pack(_ENCODER.encode(rows), len(rows))


def _unpacked(pack: _Pack) -> list[Entry]:
    return [
        (index, Emitted(request, choice, Chosen(token, logprob, rank, top), finish))
        for index, request, choice, token, logprob, rank, top, finish in _DECODER.decode(pack.data)
    ]
