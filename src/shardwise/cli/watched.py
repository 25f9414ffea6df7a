"""How a measurement tells of itself on standard error: a bar where that is a terminal, and warnings."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shardwise.telemetry import log

if TYPE_CHECKING:
    from shardwise.bench.progress import Told


class Watched:
    """Standard error, for measurements."""

    @contextmanager
    def __call__(self, parts: int) -> Iterator[Told]:
        """A bar of so many parts, gone at the end."""
        if not sys.stderr.isatty():
            yield lambda _: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            task, begun = bars.add_task("", total=parts), [False]

            def told(text: str) -> None:
                bars.update(task, description=text, advance=1 if begun[0] else 0)
                begun[0] = True

            yield told

    def warn(self, text: str | None) -> None:
        """A line on standard error, if there is anything to say."""
        if text:
            sys.stderr.write(log.line(text, logging.WARNING, "shardwise: warning: "))
