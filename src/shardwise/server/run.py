"""A server from the start of its ranks to its exit code: text, engine, fronts; then signals, or the loss of the engine."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from functools import partial

import uvloop

from shardwise.engine.bridge import pack_setup
from shardwise.engine.core_keeper import CoreKeeper
from shardwise.engine.intensity import Intensity
from shardwise.engine.remote import RemoteEngine
from shardwise.errors import ShardwiseError
from shardwise.sched.events import Ended, Event
from shardwise.sched.request import SamplingParams
from shardwise.server import banner
from shardwise.server.checks import Text, open_text, warnings
from shardwise.server.clock import process_age_s
from shardwise.server.core import CoreStart
from shardwise.server.fleet import Fleet
from shardwise.server.listener import url
from shardwise.server.quiet import settle
from shardwise.server.service import Service
from shardwise.server.settings import Settings
from shardwise.server.web import Web
from shardwise.telemetry import log

WARM_TOKENS = 2
"""What the first request of all, our own, writes: one token by a prompt's step, one by a decode's."""


class Run:
    """One server. It is made while the ranks load."""

    def __init__(
        self, core: CoreStart, settings: Settings, fronts: int, listener: socket.socket, intensity: Intensity | None = None
    ) -> None:
        self._intensity = intensity
        self._start, self._settings, self._fronts, self._listener = core, settings, fronts, listener
        self._told: list[int] = []
        """The signals that came so far."""
        self._change = asyncio.Event()
        self._fleet: Fleet | None = None
        self._core: CoreKeeper | None = None

    def to_end(self) -> int:
        """The exit code: 0 where it was told to end. ShardwiseError where the engine was lost."""
        setup = self._start.setup
        text = open_text(setup, self._settings.chat_template)
        for line in warnings(setup, text):
            sys.stderr.write(log.line(line, logging.WARNING, "shardwise: "))
        start = self._start
        with start.result() as first, CoreKeeper(first, start.host, start.engine, _say, self._intensity) as self._core:
            if (lost := uvloop.run(self._serve(text))) is not None:
                raise ShardwiseError(lost)
        return 0

    async def _serve(self, text: Text) -> str | None:
        """Until it is told to end: None; or the engine is lost: why."""
        assert self._core is not None
        setup, settings, loop = self._start.setup, self._settings, asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._tell, number)
        again = partial(self._core.connect, again=True)
        engine = await RemoteEngine.open(await self._core.connect(), setup, self._core.why, again)
        web = Web(Service(engine, settings, text.front(engine, settings.seed, 0)), self._listener)
        self._fleet = Fleet(self._fronts - 1, pack_setup(setup), settings, self._listener, self._core)
        begun = time.monotonic()
        await asyncio.gather(warmed(engine), self._fleet.start())
        warm_s = time.monotonic() - begun
        settle()
        await web.start()
        self._announce(web, warm_s)
        ends = asyncio.create_task(engine.gone()), asyncio.create_task(self._change.wait())
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        within_s = settings.drain_timeout_s if engine.lost is None else 0.0
        if within_s and (count := web.service.drain.count):
            sys.stderr.write(log.line(banner.ending(count, within_s)))
        await asyncio.gather(web.drain(within_s) if engine.lost is None else web.end(), self._fleet.drain(within_s))
        # After a drain that took too long, the connection was closed on purpose: only the process itself says what it met.
        return self._core.lost if self._told else engine.lost

    def _announce(self, web: Web, warm_s: float) -> None:
        times = {**self._start.split, "warm-up": warm_s}
        address = url(self._listener)
        lines = (
            banner.ready(times, process_age_s()),
            banner.api(address, web.service.names),
            banner.attempt(address, bool(self._settings.api_keys)),
        )
        sys.stdout.write("".join(map(log.line, lines)))
        sys.stdout.flush()

    def _tell(self, number: int) -> None:
        """A first signal asks for an end in order, a second one for an end."""
        self._told.append(number)
        self._change.set()
        if len(self._told) > 1:
            if self._fleet is not None:
                self._fleet.end(signal.SIGKILL)
            if self._core is not None:
                self._core.kill()
            sys.stdout.flush()
            os._exit(128 + number)


def _say(text: str) -> None:
    sys.stderr.write(log.line(text, logging.WARNING, "shardwise: "))


async def warmed(engine: RemoteEngine) -> None:
    """Has the ranks compute once, so that the first user's first token does not wait for what comes only once."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Ended] = loop.create_future()

    def sink(event: Event) -> None:
        if isinstance(event, Ended) and not ended.done():
            ended.set_result(event)

    params = SamplingParams(temperature=0.0, max_tokens=min(WARM_TOKENS, engine.setup.context - 1), ignore_eos=True, seed=0)
    number = engine.submit((0,), params, sink)
    await engine.admitted(number)
    if error := (await ended).error:
        raise ShardwiseError(f"the engine failed at its first request: {error}")
