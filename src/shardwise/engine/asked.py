"""What a front asked of the engine itself (its status, a recording, other shares), until that is answered. On one loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any

from shardwise.engine import bridge
from shardwise.errors import Conflict, ShardwiseError

Told = bridge.Answer | bridge.Profiled | bridge.Resharded


class Asked:
    """`send` sends a message to the engine that there is."""

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Callable[[bytes], None]) -> None:
        self._loop, self._send = loop, send
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    async def ask(self, message: Callable[[int], bridge.Message]) -> Any:
        """The answer to what `message` makes of the number that it is asked by. Raises what is told instead of one."""
        number, answer = next(self._numbers), self._loop.create_future()
        self._waiting[number] = answer
        self._send(bridge.frame(message(number)))
        try:
            return await answer
        finally:
            self._waiting.pop(number, None)
            del answer  # it may hold the error whose traceback holds this frame

    def take(self, told: Told) -> None:
        """What the engine says; nothing comes of it where nobody waits any more."""
        if (answer := self._waiting.get(told.number)) is None or answer.done():
            return
        if isinstance(told, bridge.Answer):
            answer.set_result(told.status)
        elif isinstance(told, bridge.Profiled):
            if told.conflict is None:
                answer.set_result(told.traces)
            else:
                answer.set_exception(Conflict(told.conflict))
        elif told.refused is None:
            answer.set_result(None)
        else:
            answer.set_exception(bridge.RESHARD_ERRORS[told.kind](told.refused))

    def fail(self, error: ShardwiseError) -> None:
        """Nothing is answered any more of what was asked so far."""
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(error)
