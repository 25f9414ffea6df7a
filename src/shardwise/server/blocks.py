"""Pieces of an answer gather in blocks, one after another: a reasoning, a text, a call. Responses and messages list these.

Says what opens, grows and closes; how an API spells that is its own business.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from shardwise.server.answer.pieces import Argued, Called, Piece, Said, Thought

Kind = Literal["thought", "text", "call"]


@dataclass(slots=True, eq=False)
class Block:
    """`call` has the id and the name where it is one. `text` is the reasoning, the text, or the arguments' JSON so far."""

    index: int
    kind: Kind
    call: Called | None = None
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.parts)


@dataclass(frozen=True, slots=True)
class Opened:
    """A block begins, without any text yet."""

    block: Block


@dataclass(frozen=True, slots=True)
class Grew:
    """`text` was added to the open block."""

    block: Block
    text: str


@dataclass(frozen=True, slots=True)
class Closed:
    """Nothing more comes of this block; the next may begin."""

    block: Block


Change = Opened | Grew | Closed


class Blocks:
    """The blocks of one choice. White space between two blocks is none of the answer: models put line breaks there, and an
    empty text among calls is more than clients take (Anthropic's own API refuses one that is sent back)."""

    def __init__(self) -> None:
        self.all: list[Block] = []
        self._open: Block | None = None
        self._blank = ""

    def take(self, pieces: Iterable[Piece]) -> Iterator[Change]:
        """What changes by these, neighbours joined."""
        for kind, call, text in _joined(pieces):
            if kind == "text" and (self._open is None or self._open.kind != "text"):
                self._blank += text
                if not self._blank.strip():
                    continue
                text, self._blank = self._blank, ""
            if call is not None or self._open is None or self._open.kind != kind:
                yield from self._next(kind, call)
            if text and self._open is not None:
                self._open.parts.append(text)
                yield Grew(self._open, text)

    def finish(self, *, one: bool = False) -> Iterator[Change]:
        """The end. Where nothing was said but white space, that is the text; `one`: there is a text even where nothing was."""
        if not self.all and (self._blank or one):
            text = self._blank
            yield from self._next("text", None)
            assert self._open is not None
            if text:
                self._open.parts.append(text)
                yield Grew(self._open, text)
        if self._open is not None:
            yield Closed(self._open)
            self._open = None

    def _next(self, kind: Kind, call: Called | None) -> Iterator[Change]:
        if self._open is not None:
            yield Closed(self._open)
        self._blank = ""
        self._open = Block(len(self.all), kind, call)
        self.all.append(self._open)
        yield Opened(self._open)


def _joined(pieces: Iterable[Piece]) -> Iterator[tuple[Kind, Called | None, str]]:
    """(kind, what is called where a call begins, text): neighbours of one kind as one."""
    kind: Kind | None = None
    call: Called | None = None
    parts: list[str] = []
    for piece in pieces:
        now: Kind = "thought" if isinstance(piece, Thought) else "text" if isinstance(piece, Said) else "call"
        if kind is not None and (now != kind or isinstance(piece, Called)):
            yield kind, call, "".join(parts)
            call, parts = None, []
        kind = now
        if isinstance(piece, Called):
            call = piece
        else:
            assert isinstance(piece, Thought | Said | Argued)
            parts.append(piece.text)
    if kind is not None:
        yield kind, call, "".join(parts)


def parsed(arguments: str) -> dict[str, Any] | None:
    """The arguments of a call; None where they are no JSON object, as when the answer was cut within them."""
    try:
        found = json.loads(arguments, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def mended(text: str) -> str:
    """With U+FFFD for each half of a character, which JSON can spell and UTF-8 cannot carry."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
