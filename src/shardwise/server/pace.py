"""Much work of one request in small steps, on the loop: between two of them others have their turn, if it took a while."""

from __future__ import annotations

import asyncio
import time

TURN_S = 0.005
"""As long as one may go on: as the interpreter lets a thread."""


class Pace:
    """To be awaited between two steps. It waits for nothing but the others' turn."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    async def step(self) -> None:
        """One step is done."""
        if time.monotonic() - self._since > TURN_S:
            await asyncio.sleep(0)
            self._since = time.monotonic()
