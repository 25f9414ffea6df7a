"""Text that is still coming, read forward by generators that wait where it ends. How it was cut into pieces cannot be seen.

What was read stays held until it is dropped (it was part of a call) or released (it was not, and is content after all).
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Generator, Sequence
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Reading: TypeAlias = Generator[None, None, T]
"""A generator that yields where it needs more text, and returns what it read."""

MOST_HELD = 1 << 20  # characters; a call of a format that is read as a whole is no longer
SPACE = " \t\r\n"


class NotCall(Exception):
    """What is held is not a call, or not one that was offered; it is content."""


class Tape:
    """The text of one answer: fed at one end, read at the other. Unread text is never longer than one feed and a marker."""

    SPACES = re.compile(f"[{SPACE}]*")

    def __init__(self) -> None:
        self.ended = False
        self._text, self._at = "", 0
        self._held: list[str] = []
        self._held_chars = 0
        self._holding = False

    def feed(self, text: str) -> None:
        """More text."""
        self._text, self._at = self._text[self._at :] + text, 0

    @property
    def over(self) -> bool:
        """Whether the text has ended and all of it was read."""
        return self.ended and self._at == len(self._text)

    # --- holding ------------------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """From here on, what is read can be had back."""
        self._holding = True

    def drop(self) -> None:
        """What was held is used up; what is read from here on is held anew."""
        self._held, self._held_chars = [], 0

    def release(self) -> str:
        """All that is held, and no more holding."""
        text = "".join(self._held)
        self.drop()
        self._holding = False
        return text

    def take(self, chars: int) -> str:
        """The next characters, which must be there. Raises NotCall where more than MOST_HELD would be held."""
        most = min(chars, MOST_HELD - self._held_chars) if self._holding else chars
        text = self._text[self._at : self._at + most]
        self._at += most
        if self._holding:
            self._held.append(text)
            self._held_chars += most
        if most < chars:
            raise NotCall
        return text

    # --- reading ------------------------------------------------------------------------------------------------------

    def peek(self, chars: int = 1) -> Reading[str]:
        """The next characters, unread; fewer, or none, only at the text's end."""
        while len(self._text) - self._at < chars and not self.ended:
            yield
        return self._text[self._at : self._at + chars]

    def run(self, pattern: re.Pattern[str], most: int = sys.maxsize) -> Reading[str]:
        """What is there now of a run of `pattern`, which is one set of characters repeated, up to `most`; "" where it ends."""
        if not (yield from self.peek()):
            return ""
        found = pattern.match(self._text, self._at, min(len(self._text), self._at + most))
        return self.take(found.end() - self._at) if found else ""

    def space(self) -> Reading[None]:
        """Skip spaces, tabs and newlines."""
        while (yield from self.run(self.SPACES)):
            pass

    def literal(self, *options: str) -> Reading[str]:
        """Read the one of `options` that comes, none of them the beginning of another; "" and nothing read if none does."""
        while True:
            unread = self._text[self._at : self._at + max(map(len, options))]
            for option in options:
                if unread.startswith(option):
                    return self.take(len(option))
            if self.ended or not any(option.startswith(unread) for option in options):
                return ""
            yield

    def expect(self, *options: str) -> Reading[str]:
        """As `literal`, but raises NotCall if none of them comes."""
        if not (found := (yield from self.literal(*options))):
            raise NotCall
        return found

    def closing(self, *options: str) -> Reading[bool]:
        """Read one of `options`, or as much of one as the text ends with. Returns whether one came."""
        if (yield from self.literal(*options)):
            return True
        if self.ended and not self.over and any(option.startswith(self._text[self._at :]) for option in options):
            self.take(len(self._text) - self._at)
            return True
        return False

    def until(self, markers: Sequence[str], sink: Callable[[str], None]) -> Reading[str]:
        """Give `sink` the text up to the first of `markers`, as soon as it cannot be part of one.

        Returns the marker, which is read and held; "" if the text ended without one.
        """
        pattern = _either(tuple(markers))
        while True:
            found = pattern.search(self._text, self._at)
            stop = found.start() if found else len(self._text) - (0 if self.ended else self._begun(markers))
            if stop > self._at:
                sink(self.take(stop - self._at))
            if found:
                self.hold()
                return self.take(len(found[0]))
            if self.ended:
                return ""
            yield

    def _begun(self, markers: Sequence[str]) -> int:
        """How many of the last unread characters may be the start of a marker."""
        longest = max(map(len, markers))
        for chars in range(min(longest - 1, len(self._text) - self._at), 0, -1):
            end = self._text[-chars:]
            if any(marker.startswith(end) for marker in markers):
                return chars
        return 0


@functools.lru_cache(maxsize=64)
def _either(markers: tuple[str, ...]) -> re.Pattern[str]:
    """A pattern of any of the markers, the longest first."""
    return re.compile("|".join(map(re.escape, sorted(markers, key=len, reverse=True))))
