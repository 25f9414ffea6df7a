"""Looks at a server while a fault is done to it: when it says that it is unwell, when it is whole again, whom its log names."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence

from shardwise.chaos.server import Server

EVERY_S = 0.05


class Watch:
    """From its making to `end`, on a thread. Seconds count from `since`, by time.monotonic."""

    def __init__(self, server: Server, since: float) -> None:
        self._server, self._since = server, since
        self._stop = threading.Event()
        self.unwell: tuple[float, str] | None = None
        """When /health first said that it is not well, and what."""
        self.whole_s: float | None = None
        """When it was whole, with nothing that was not so seen since."""
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Looks no more."""
        self._stop.set()
        self._thread.join()

    def until_whole(self, until: float) -> float | None:
        """Seconds from the fault until it was whole again, waited for; None where it is not by then, or has ended."""
        while self.whole_s is None and time.monotonic() < until and not self._server.ended:
            time.sleep(EVERY_S / 2)
        return self.whole_s

    def _look(self) -> None:
        while not self._stop.wait(EVERY_S) and not self._server.ended:
            self._server.herd.look()
            found = self._server.health()
            if self.unwell is None and found is not None and found[0] != 200:
                self.unwell = time.monotonic() - self._since, " ".join(found[1].split())[:300]
            if found is None or found[0] != 200 or not self._server.running():
                self.whole_s = None
            elif self.whole_s is None:
                self.whole_s = time.monotonic() - self._since


def named(lines: Sequence[tuple[float, str]], since: float, pids: dict[int, int]) -> tuple[float, str] | None:
    """(seconds, which rank) of the first line that names one, by its number or, in `pids`, its process."""
    for at, text in lines:
        if found := re.search(r"\brank (\d+)\b", text, re.IGNORECASE):
            return at - since, f"rank {found[1]}"
        for number in map(int, re.findall(r"\b\d{2,}\b", text)):
            if number in pids:
                return at - since, f"rank {pids[number]}"
    return None
