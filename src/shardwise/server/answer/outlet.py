"""What leaves a reader: text of each kind, joined into pieces, without the white space that only sets markers apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, TypeAlias

from shardwise.server.answer.pieces import Argued, Called, Piece, Said, Thought, new_call_id
from shardwise.server.answer.tape import SPACE

MOST_GAP = 256  # characters of white space held back; what stood before them has gone out

_Kind: TypeAlias = Literal["thought", "said", "argued"]

Calls: TypeAlias = Iterable[tuple[str, str]]
"""(name, arguments' JSON as far as it goes) of each."""


class Outlet:
    """Collects pieces until they are asked for.

    White space is dropped around a thought (as in llama.cpp), before a call, and after a call if nothing is said there. All
    other content goes out as it came.
    """

    def __init__(self, *, reads_calls: bool, parallel: bool, short_ids: bool) -> None:
        """`reads_calls`: white space may turn out to stand before a call. `parallel`: more than the first call counts."""
        self._fresh: list[tuple[_Kind | Called, int, list[str]]] = []
        self._reads_calls, self._parallel, self._short_ids = reads_calls, parallel, short_ids
        self.begun = 0  # calls, with those that do not count
        self._calls = 0  # those that count
        self._muted = self._called_last = False
        self._said_gap = self._thought_gap = ""
        self._before_thought, self._after_thought = True, False
        self._mute = False
        self.held: Callable[[], Calls] | None = None
        """Makes the calls whose names were read and that are not certain yet."""

    def collect(self) -> list[Piece]:
        """The pieces since the last time."""
        made: list[Piece] = []
        for kind, index, texts in self._fresh:
            if isinstance(kind, Called):
                made.append(kind)
            elif kind == "argued":
                made.append(Argued(index, "".join(texts)))
            else:
                made.append((Thought if kind == "thought" else Said)("".join(texts)))
        self._fresh = []
        return made

    def say(self, text: str) -> None:
        """Content."""
        if self._mute:
            return
        if self._after_thought:
            text = text.lstrip(SPACE)
        if not text:
            return
        self._after_thought = False
        text = self._said_gap + text
        cut = _cut(text) if self._reads_calls else len(text)
        self._said_gap = text[cut:]
        if cut:
            self._called_last = False
            self._emit("said", text[:cut])

    def think(self, text: str) -> None:
        """Reasoning."""
        if self._before_thought:
            text = text.lstrip(SPACE)
        if not text:
            return
        self._before_thought = False
        text = self._thought_gap + text
        cut = _cut(text)
        self._thought_gap = text[cut:]
        if cut:
            self._emit("thought", text[:cut])

    def end_thought(self) -> None:
        """The reasoning is over; a later one goes on in a new line."""
        self._thought_gap = "" if self._before_thought else "\n"
        self._before_thought = self._after_thought = True

    def call(self, name: str) -> None:
        """A call begins; its arguments follow."""
        self._said_gap, self.held = "", None
        self.begun += 1
        self._called_last, self._after_thought = True, False
        self._muted = self._calls > 0 and not self._parallel
        if not self._muted:
            self._fresh.append((Called(self._calls, new_call_id(short=self._short_ids), name), 0, []))
            self._calls += 1

    def argue(self, text: str) -> None:
        """More of the arguments of the call that began last."""
        if not self._muted:
            self._emit("argued", text)

    def call_held(self) -> None:
        """The text has ended: the calls that are held were meant, and go out as far as they came."""
        for name, arguments in self.held() if self.held is not None else ():
            self.call(name)
            if arguments:
                self.argue(arguments)

    def mute(self) -> None:
        """Nothing more is said: what comes yet is a call's syntax, cut short."""
        self._mute, self._said_gap = True, ""

    def finish(self) -> None:
        """No more comes: white space that need not go is said."""
        if self._said_gap and not self._called_last:
            self._emit("said", self._said_gap)
        self._said_gap = self._thought_gap = ""

    def _emit(self, kind: _Kind, text: str) -> None:
        index = max(self._calls - 1, 0)
        if self._fresh and self._fresh[-1][:2] == (kind, index):
            self._fresh[-1][2].append(text)
        else:
            self._fresh.append((kind, index, [text]))


def _cut(text: str) -> int:
    """Where the white space at the end begins, or as much of it as is held back."""
    return max(len(text.rstrip(SPACE)), len(text) - MOST_GAP)
