"""What a reader makes of an answer's text: pieces as they become certain, and the message that they add up to."""

from __future__ import annotations

import secrets
import string
from typing import TypeAlias

import msgspec

CALL_ID_CHARS = 24  # after "call_"
MISTRAL_ID_CHARS = 9  # all of it: Mistral's chat templates refuse an id of any other length
_ALPHANUMERIC = string.ascii_letters + string.digits


class Thought(msgspec.Struct, frozen=True, gc=False):
    """Text of the reasoning."""

    text: str


class Said(msgspec.Struct, frozen=True, gc=False):
    """Text of the content."""

    text: str


class Called(msgspec.Struct, frozen=True, gc=False):
    """A call begins: `index` counts the calls of a message from 0."""

    index: int
    id: str
    name: str


class Argued(msgspec.Struct, frozen=True, gc=False):
    """More of the arguments' JSON text of call `index`; all of them together are the arguments."""

    index: int
    text: str


Piece: TypeAlias = Thought | Said | Called | Argued


class Message:
    """The sum of pieces. Streamed or not, a client is told the same."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[tuple[Called, list[str]]] = []

    def add(self, piece: Piece) -> None:
        """Takes the next piece, in the order in which the reader gave them."""
        match piece:
            case Said(text):
                self._content.append(text)
            case Thought(text):
                self._reasoning.append(text)
            case Called(index):
                assert index == len(self._calls), f"call {index} after {len(self._calls)} calls"
                self._calls.append((piece, []))
            case Argued(index, text):
                self._calls[index][1].append(text)

    @property
    def content(self) -> str | None:
        """What was said; where nothing was: None beside calls or reasoning, as OpenAI and vLLM have it, else ""."""
        return None if not self._content and (self._calls or self._reasoning) else "".join(self._content)

    @property
    def reasoning(self) -> str | None:
        """What was thought, None if nothing was."""
        return "".join(self._reasoning) or None

    @property
    def calls(self) -> list[tuple[str, str, str]]:
        """(id, name, arguments as JSON text) of each call. Arguments are cut short where the answer was."""
        return [(called.id, called.name, "".join(parts)) for called, parts in self._calls]


def new_call_id(*, short: bool = False) -> str:
    """A fresh id of a call; `short` for Mistral."""
    prefix, chars = ("", MISTRAL_ID_CHARS) if short else ("call_", CALL_ID_CHARS)
    return prefix + "".join(secrets.choice(_ALPHANUMERIC) for _ in range(chars))
