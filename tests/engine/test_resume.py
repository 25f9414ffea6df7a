"""An engine is gone in the midst of requests, and another one takes its place: nobody is told anything else than otherwise."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from queue import SimpleQueue

import pytest

from shardwise.engine import bridge
from shardwise.engine.desk import Desk
from shardwise.engine.engine import Engine
from shardwise.engine.fake import FakeEngine
from shardwise.engine.pending import Pending
from shardwise.engine.ranks import first_readable
from shardwise.engine.remote import AWAY, WAITING, RemoteEngine
from shardwise.engine.setup import Options, Setup, resolve
from shardwise.errors import QueueFull, RequestError, ShardwiseError, Unavailable
from shardwise.sched.events import Emitted, Ended, Event, Pooled, Scored
from shardwise.sched.pooling import PoolingParams
from shardwise.sched.request import SamplingParams
from shardwise.sched.structured import StructuredOutputs
from shardwise.sched.written import NEW, Written
from tests.engine.test_bridge import ENDLESS, OUT_S, Heard, joined, served, until

# --- what an engine makes of it ---------------------------------------------------------------------------------------

WORDS = StructuredOutputs(regex="[a-z ]{30}")

ASKED: dict[str, tuple[SamplingParams | PoolingParams, dict[str, object]]] = {
    "greedy": (SamplingParams(temperature=0, max_tokens=12, ignore_eos=True), {}),
    "drawn": (SamplingParams(seed=3, max_tokens=12, ignore_eos=True), {}),
    "choices": (SamplingParams(seed=4, n=3, max_tokens=8, ignore_eos=True, logprobs=1), {}),
    "ends": (SamplingParams(seed=5, n=3, max_tokens=30, min_tokens=4), {"ends": tuple(range(0, 4096, 9))}),
    "penalties": (
        SamplingParams(seed=6, max_tokens=12, presence_penalty=2, frequency_penalty=2, repetition_penalty=1.5, logprobs=2),
        {"bad": ((40, 41), (50,))},
    ),
    "grammar": (SamplingParams(seed=7, max_tokens=20, structured_outputs=WORDS), {"ends": (1,)}),
    "no ends": (SamplingParams(seed=8, n=2, max_tokens=40, structured_outputs=WORDS), {}),
    "scored": (SamplingParams(seed=9, max_tokens=4, prompt_logprobs=1, logprobs=0), {}),
    "only scored": (SamplingParams(max_tokens=0, prompt_logprobs=1, seed=0), {}),
    "pooled": (PoolingParams(), {}),
}
PROMPT = tuple(range(100, 150))


@pytest.fixture(scope="module")
def small() -> Setup:
    """The bundled model, which has a tokenizer; prompts take several steps."""
    return resolve(Options("shardling", device="cpu", threads=1, cache_memory=2**23, max_num_batched_tokens=16))


@pytest.fixture(scope="module")
def engine(small: Setup) -> Iterator[Engine]:
    with Engine(small, "threads") as engine:
        yield engine


def told(engine: Engine, asked: bridge.Submit, **more: object) -> list[Event | tuple[int, int]]:
    """All that comes of a request, with what it tells of its beginning in its place."""
    events: list[Event | tuple[int, int]] = []
    done = threading.Event()

    def sink(event: Event) -> None:
        events.append(event)
        if isinstance(event, Ended):
            done.set()

    given = {"ends": asked.ends, "bad": asked.bad, "written": asked.before, **more}
    engine.submit(asked.prompt, asked.params, sink, began=lambda *counts: events.append(counts), **given)  # type: ignore[arg-type]
    assert done.wait(OUT_S)
    return events


def plain(events: list[Event | tuple[int, int]]) -> tuple[list[object], ...]:
    """What the client sees of them: each choice, the scores, the vector, the end."""
    own = [e for e in events if not isinstance(e, tuple)]
    tokens = sorted(((e.choice, e.chosen, e.finish) for e in own if isinstance(e, Emitted)), key=lambda found: found[0])
    scores = [chosen for e in own if isinstance(e, Scored) for chosen in e.scores]
    return tokens, scores, [e.vector for e in own if isinstance(e, Pooled)], [
        (e.error, e.prefilled, e.cached) for e in own if isinstance(e, Ended)
    ]  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
def test_what_comes_is_the_same_wherever_it_was_cut(engine: Engine, name: str) -> None:
    params, more = ASKED[name]
    sampling, pooling = (params, None) if isinstance(params, SamplingParams) else (None, params)
    asked = bridge.Submit(1, PROMPT, sampling, pooling, tenant="", **more)  # type: ignore[arg-type]
    # Under another tenant each time, so that nothing is found of the times before.
    whole = told(engine, asked, tenant="whole")
    wanted = plain(whole)
    assert wanted[-1][0] == (None, *next(e for e in whole if isinstance(e, tuple)))
    for cut in {*range(0, len(whole), max(1, len(whole) // 5)), len(whole) - 2}:
        pending = Pending(asked, lambda _: None, 0.0, taken=True)
        for event in (before := whole[:cut]):
            if isinstance(event, tuple):
                pending.began = event
            else:
                pending.note(event)
        if pending.over:
            ended = pending.end(1)
            assert [(ended.error, ended.prefilled, ended.cached)] == wanted[-1]
        else:
            after = told(engine, pending.again(1.0), tenant=f"cut {cut}")
            assert plain(before + after) == wanted, cut


def test_what_was_never_written_is_refused(engine: Engine) -> None:
    vocab = engine.setup.layout.model.vocab
    one = SamplingParams(max_tokens=3, n=2)
    for wrong in (
        Written(((5,),), began=(1, 0)),
        Written(((5,), (vocab,)), began=(1, 0)),
        Written(((5, 6, 7), ()), began=(1, 0)),
        Written(((5,), ()), (2,), began=(1, 0)),
        Written(((5,), (6,)), (0, 1), began=(1, 0)),
        Written(scored=2, began=(2, 0)),
        Written(((5,), (6,))),
    ):
        with pytest.raises(RequestError):
            engine.submit((1, 2), one, lambda _: None, written=wrong)


class Broken:
    """Ranks with a fault that nobody foresaw."""

    ready, whole = (), True

    def forward(self, step: object) -> None:
        raise KeyError(step)

    def wait(self, wake: int) -> None:
        first_readable(wake)

    def close(self) -> None:
        pass


def test_what_nobody_foresaw_is_told_before_anything_ends(small: Setup) -> None:
    """So that a process can end without a word, and its requests go on elsewhere."""
    told: list[object] = []
    with Engine(small, Broken()) as engine:  # type: ignore[arg-type]
        engine.crashed = told.append
        heard = SimpleQueue[Event]()
        engine.submit((1, 2), SamplingParams(seed=1), lambda event: (told.append(event), heard.put(event))[0])
        assert isinstance(ended := heard.get(timeout=OUT_S), Ended) and "the engine failed: KeyError" in str(ended.error)
    assert isinstance(told[0], KeyError) and told[1:] == [ended]


# --- what a front makes of it -----------------------------------------------------------------------------------------


class Engines:
    """One fake engine after another, each served by a desk; `lose` takes the present one away, `bring` brings the next."""

    def __init__(self, setup: Setup, fake: Callable[..., FakeEngine]) -> None:
        self.setup, self._fake = setup, fake
        self._stack = ExitStack()
        self._there = asyncio.Event()
        self.gone: str | None = None
        self.bring()

    def bring(self, queue: int | None = None) -> None:
        self.engine = self._fake(held=True)
        self.engine.gate.limit = queue
        self._stack = ExitStack()
        self.desk: Desk = self._stack.enter_context(served(self.engine))
        self._there.set()

    def lose(self) -> None:
        """As a kill: nobody is told why."""
        self._there.clear()
        while not self.desk._lines:  # it has not taken the front in yet
            time.sleep(0.001)
        for line in self.desk._lines:
            line.sock.shutdown(socket.SHUT_RDWR)

    def end(self, gone: str | None = None) -> None:
        self._stack.close()
        if gone is not None:
            self.gone = gone
            self._there.set()

    async def again(self) -> socket.socket:
        await self._there.wait()
        if self.gone is not None:
            raise Unavailable(self.gone)
        return joined(self.desk)


@pytest.fixture
def run(setup: Setup, fake: Callable[..., FakeEngine]) -> Callable[..., None]:
    """run(go) is go(remote, engines) on a loop."""

    def run(go: Callable[..., object]) -> None:
        async def main() -> None:
            engines = Engines(setup, fake)
            remote = await RemoteEngine.open(joined(engines.desk), setup, None, engines.again)
            try:
                await go(remote, engines)  # type: ignore[misc]
            finally:
                remote.close()
                engines.end()

        asyncio.run(main())

    return run


def test_requests_go_on_in_the_next_engine(run: Callable[..., None]) -> None:
    async def go(remote: RemoteEngine, engines: Engines) -> None:
        heard = [Heard() for _ in range(3)]
        two = SamplingParams(n=2, max_tokens=9, ignore_eos=True)
        numbers = [remote.submit((n, 5), two, each.put) for n, each in enumerate(heard)]
        await until(lambda: len(engines.engine.submitted) == 3)
        engines.engine.allow(4)
        await until(lambda: all(len(each.tokens) == 8 for each in heard))
        remote.finish(numbers[1], 0)
        remote.abort(numbers[2])
        await heard[2].ended()
        await until(lambda: bool(engines.engine.finished))
        old = engines.engine
        engines.lose()
        await until(lambda: remote.away is not None)
        assert remote.away == AWAY and remote.lost is None
        late = Heard()
        waits = asyncio.create_task(remote.admitted(remote.submit((7,), two, late.put)))
        with pytest.raises(Unavailable, match="is being made anew"):
            await remote.status()
        remote.finish(numbers[0], 1)
        engines.end()
        assert not waits.done()
        engines.bring()
        await asyncio.wait_for(waits, OUT_S)
        assert remote.away is None
        assert [prompt for prompt, _ in engines.engine.submitted] == [(0, 5), (1, 5), (7,)]
        # The seed is what the first engine had been given.
        assert engines.engine.submitted[0][1] == old.submitted[0][1] and old.submitted[0][1].seed is not None  # type: ignore[union-attr]
        engines.engine.allow(100)
        for each in (heard[0], heard[1], late):
            assert await each.ended() == Ended(each.events[-1].request, prefilled=2 if each is not late else 1)
        counting = engines.engine._counting
        for n, choices in ((0, {0: 9, 1: 4}), (1, {0: 4, 1: 9})):
            for choice, count in choices.items():
                found = [token for own, token in heard[n].tokens if own == choice]
                assert found == [counting((n, 5), choice, place) for place in range(count)]

    run(go)


def test_what_is_over_ends_at_once(run: Callable[..., None]) -> None:
    async def go(remote: RemoteEngine, engines: Engines) -> None:
        heard = [Heard() for _ in range(4)]
        numbers = [remote.submit((n, 5), ENDLESS, each.put) for n, each in enumerate(heard)]
        await until(lambda: len(engines.engine.submitted) == 4)
        engines.engine.allow(2)
        await until(lambda: all(len(each.tokens) == 2 for each in heard))
        engines.lose()
        remote.abort(numbers[0])  # before the loss was seen
        remote.finish(numbers[1], 0)
        await until(lambda: remote.away is not None)
        remote.abort(numbers[2])
        remote.finish(numbers[3], 0)
        for number, each in zip(numbers, heard, strict=True):
            assert await each.ended() == Ended(number, prefilled=2)
        engines.end()
        engines.bring()
        await until(lambda: remote.away is None)
        await remote.status()
        assert not engines.engine.submitted

    run(go)


def test_two_losses_in_a_row_and_one_on_the_way(run: Callable[..., None]) -> None:
    async def go(remote: RemoteEngine, engines: Engines) -> None:
        heard = Heard()
        remote.submit((1, 5), SamplingParams(max_tokens=30, ignore_eos=True), heard.put)
        for turn in range(5):
            if turn % 2:  # else it is lost before it could give anything
                engines.engine.allow(3)
                await until(lambda turn=turn: len(heard.tokens) == 3 * (turn // 2 + 1))
            engines.lose()
            engines.end()
            engines.bring()
            await until(lambda: remote.away is None and len(engines.engine.submitted) == 1)
        engines.engine.allow(100)
        assert (await heard.ended()).error is None
        assert [token for _, token in heard.tokens] == [engines.engine._counting((1, 5), 0, place) for place in range(30)]

    run(go)


def test_where_none_comes_all_end_with_the_cause(run: Callable[..., None]) -> None:
    async def go(remote: RemoteEngine, engines: Engines) -> None:
        heard, late = Heard(), Heard()
        remote.submit((1, 5), ENDLESS, heard.put)
        engines.engine.allow(2)
        await until(lambda: len(heard.tokens) == 2)
        engines.lose()
        await until(lambda: remote.away is not None)
        waits = asyncio.create_task(remote.admitted(remote.submit((2,), ENDLESS, late.put)))
        await asyncio.sleep(0)
        engines.end("it burned down")
        assert (await heard.ended()).error == "it burned down" == await remote.gone()
        with pytest.raises(Unavailable, match="it burned down"):
            await waits
        with pytest.raises(Unavailable, match="it burned down"):
            remote.submit((2,), ENDLESS, late.put)

    run(go)


def test_few_wait_for_the_next_engine_and_the_others_are_told_when_to_come(run: Callable[..., None], setup: Setup) -> None:
    async def go(remote: RemoteEngine, engines: Engines) -> None:
        engines.lose()
        await until(lambda: remote.away is not None)
        most = WAITING * setup.limits.sequences
        heard = [Heard() for _ in range(most)]
        for each in heard:
            await remote.room("", 2)
            remote.submit((1, 2), SamplingParams(max_tokens=1), each.put)
        with pytest.raises(QueueFull, match="many requests wait for it") as told:
            await remote.room("", 2)
        assert told.value.retry_after_s >= 1
        engines.end()
        # Where the next one has fewer places, the last are refused: they were taken in by nobody.
        engines.bring(queue=most - 1)
        await until(lambda: len(engines.engine.submitted) == most - 1)
        engines.engine.allow(1)
        errors = [(await each.ended()).error for each in heard]
        assert errors[:-1] == [None] * (most - 1) and "requests wait already" in str(errors[-1])

    run(go)


def test_nothing_is_written_of_a_new_one() -> None:
    assert not NEW.begun and bridge.Submit(1, (2,)).before is None
    with pytest.raises(ShardwiseError):
        bridge.decode(bridge.frame(bridge.Submit(1, (2,), again=True, written=((-1,),)))[4:])
