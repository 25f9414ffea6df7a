"""What all endpoints of one front share: the engine, the text front, the model's names, the settings."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from shardwise.engine.contract import ServingEngine
from shardwise.engine.front import Front, sampling_defaults
from shardwise.sched.request import SamplingParams
from shardwise.server.drain import Drain
from shardwise.server.portions import encoded, is_large
from shardwise.server.refusal import Refusal
from shardwise.server.reply import ENCODER
from shardwise.server.settings import Settings
from shardwise.server.store import Store

P = ParamSpec("P")
T = TypeVar("T")

READERS = 4
"""Threads that render templates and tokenise, so that a long prompt holds up nobody's tokens."""


class Service:
    """One front. `names` are the served names of the model, the usual one first; "*" among the settings' names takes any."""

    def __init__(self, engine: ServingEngine, settings: Settings, front: Front | None = None) -> None:
        self.engine, self.settings = engine, settings
        self.front = front or Front(engine)
        self.names = tuple(name for name in settings.served_model_name if name != "*") or (engine.setup.name,)
        self.created = int(time.time())
        self.defaults = sampling_defaults(engine.setup.folder)
        self.drain = Drain()
        self.unknown: Counter[str] = Counter()
        """How often a field came that nobody knows, by name."""
        self.store = Store(settings.max_kept, settings.max_kept_bytes, settings.kept_s)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")
        self._checker = ThreadPoolExecutor(1, thread_name_prefix="checker")

    def model(self, name: str | None) -> str:
        """The name to answer under; 404 for a model that is not served. None and "" mean the one there is."""
        if not name:
            return self.names[0]
        if name in self.names or "*" in self.settings.served_model_name:
            return name
        served = ", ".join(repr(known) for known in self.names)
        raise Refusal(
            404, f"the model {name[:200]!r} does not exist; served here: {served}", param="model", code="model_not_found"
        )

    async def read(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Does what may take long (templates, tokenising) on another thread."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, lambda: work(*args, **kwargs))

    async def encoded(self, value: object, end: bytes = b"") -> bytes:
        """The JSON of a value, with `end` behind it; made on another thread where that takes long."""
        return await self.read(encoded, value, end) if is_large(value) else ENCODER.encode(value) + end

    async def check(self, params: SamplingParams) -> None:
        """RequestError for a form of the answer that does not compile. On a thread of its own, since they are checked one after
        another, and may take a second each: who wants no form does not wait. Words that must not come up are tokenised."""
        if params.bad_words:
            await self.read(self.front.bad_ids, params.bad_words)
        if params.structured_outputs is not None:
            await asyncio.get_running_loop().run_in_executor(self._checker, self.front.check, params)

    def close(self) -> None:
        self.store.close()
        for threads in (self._readers, self._checker):
            threads.shutdown(wait=False, cancel_futures=True)
