"""A bar on standard error of requests done, with tokens a second; nothing where that is no terminal. Knows no requests."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

_ONE = threading.Lock()
"""Two bars at once would overwrite each other: while one is shown, calls on other threads show none."""

EVERY_S = 0.1


class Progress:
    """Counts of requests and tokens; without `bars`, nothing else."""

    def __init__(
        self, bars: Bars | None = None, task: TaskID | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.done = self.tokens = 0
        self._bars, self._task, self._clock = bars, task, clock
        self._begun = clock()
        self._shown_s = 0.0

    def add(self, tokens: int, *, done: bool = False) -> None:
        """So many more tokens, and perhaps the end of a request."""
        self.tokens += tokens
        self.done += done
        passed_s = self._clock() - self._begun
        if self._bars is None or self._task is None or (not done and passed_s - self._shown_s < EVERY_S):
            return
        self._shown_s = passed_s
        self._bars.update(self._task, completed=self.done, rate=f"{self.tokens / max(passed_s, 1e-9):.0f} tok/s")


@contextmanager
def progress(total: int | None, shows: bool = True) -> Iterator[Progress]:
    """A bar of `total` requests (None: nobody knows how many) while the context lasts, if `shows` and it can be seen."""
    if not shows or not sys.stderr.isatty() or not _ONE.acquire(blocking=False):
        yield Progress()
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        rate = TextColumn("{task.fields[rate]}")
        columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), rate, TimeElapsedColumn(), TimeRemainingColumn())
        with Bars(*columns, console=Console(stderr=True)) as bars:
            yield Progress(bars, bars.add_task("requests", total=total, rate=""))
    finally:
        _ONE.release()
