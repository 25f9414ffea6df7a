"""How a benchmark says what it does next, to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable

Told = Callable[[str], None]
"""Called with what is measured next; each call is one more part of the whole."""


def untold(_: str) -> None:
    """Nobody is told."""
