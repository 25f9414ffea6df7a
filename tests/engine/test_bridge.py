"""An engine asked over a socket, with a fake behind the desk: the same events, honest ends, and bytes that nobody sent."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise import AsyncLLM
from shardwise.engine import bridge
from shardwise.engine.desk import Desk
from shardwise.engine.fake import FakeEngine
from shardwise.engine.remote import WHY_S, RemoteEngine
from shardwise.engine.setup import Options, Setup, resolve
from shardwise.errors import TIME_UP, QueueFull, RequestError, Unavailable
from shardwise.sched.events import Emitted, Ended, Event, Scored
from shardwise.sched.request import SamplingParams
from shardwise.sched.step import Chosen

ENDLESS = SamplingParams(max_tokens=None, ignore_eos=True)
OUT_S = 30.0


@contextmanager
def served(engine: FakeEngine, buffer_bytes: int = 2**26) -> Iterator[Desk]:
    """A desk that serves on a thread of its own, as the engine's process does."""
    desk = Desk(engine, buffer_bytes)
    thread = threading.Thread(target=desk.serve)
    thread.start()
    try:
        yield desk
    finally:
        desk.stop()
        thread.join(OUT_S)
        assert not thread.is_alive()
        engine.close()


def joined(desk: Desk) -> socket.socket:
    ours, theirs = socket.socketpair()
    desk.join(theirs)
    return ours


class Heard:
    """The events of one request, in order."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.done = asyncio.Event()
        self.threads: set[int] = set()

    def put(self, event: Event) -> None:
        self.events.append(event)
        self.threads.add(threading.get_ident())
        if isinstance(event, Ended):
            self.done.set()

    async def ended(self) -> Ended:
        await asyncio.wait_for(self.done.wait(), OUT_S)
        last = self.events[-1]
        assert isinstance(last, Ended) and sum(isinstance(event, Ended) for event in self.events) == 1
        return last

    @property
    def tokens(self) -> list[tuple[int, int]]:
        return [(event.choice, event.chosen.token) for event in self.events if isinstance(event, Emitted)]


async def until(what: Callable[[], bool]) -> None:
    """Waits for a condition."""
    end = time.monotonic() + OUT_S
    while not what():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


def run(engine: FakeEngine, go: Callable[[RemoteEngine, Desk], Awaitable[None]], buffer_bytes: int = 2**26) -> None:
    """go(remote, desk) on a loop."""

    async def main(desk: Desk) -> None:
        remote = await RemoteEngine.open(joined(desk), engine.setup)
        await go(remote, desk)
        remote.close()

    with served(engine, buffer_bytes) as desk:
        asyncio.run(main(desk))


# --- values -----------------------------------------------------------------------------------------------------------


def test_a_setup_travels(setup: Setup) -> None:
    assert bridge.unpack_setup(bridge.pack_setup(setup)) == setup
    cut = resolve(Options("shardling", device="cpu", shares=(3, 1), max_num_seqs=7, cache_memory=2**24))
    assert bridge.unpack_setup(bridge.pack_setup(cut)) == cut


EVENTS: list[Event] = [
    Emitted(1, 2, Chosen(7), None),
    Emitted(2**40, 0, Chosen(7, -0.5, 3, ((7, -0.5), (9, -1.5))), "stop"),
    Scored(3, (Chosen(1, -2.0, 4, ()), Chosen(2, -1.0, 1, ((2, -1.0),)))),
    Ended(4, "why", 1, 2, 3),
    Ended(5),
]


def test_events_travel_in_order_however_they_are_cut() -> None:
    packed = [bridge.pack(event, event.request) for event in EVENTS * 50]
    for limit in (bridge.LIMIT_BYTES, 300):
        frames = list(bridge.event_frames(packed, limit))
        assert (len(frames) == 1) == (limit > 300)
        found: list[Event] = []
        reader = bridge.Frames()
        whole = b"".join(frames)
        for n in range(0, len(whole), 37):
            for message in reader.feed(whole[n : n + 37]):
                assert isinstance(message, bridge.Events)
                found += [bridge.unpack(event) for event in message.events]
        assert found == EVENTS * 50
    with pytest.raises(bridge.BridgeError, match="one event takes"):
        list(bridge.event_frames(packed, 10))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_bytes_that_are_no_message_are_refused(body: bytes) -> None:
    try:
        message = bridge.decode(body)
    except bridge.BridgeError:
        return
    assert bridge.decode(bridge.frame(message)[4:]) == message


# --- an engine behind a socket ----------------------------------------------------------------------------------------


def test_the_same_events_as_without_a_socket(fake: Callable[..., FakeEngine], setup: Setup) -> None:
    cases = [
        ((1, 2, 3), SamplingParams(max_tokens=9)),
        ((5,), SamplingParams(max_tokens=4, n=3, logprobs=2)),
        (tuple(range(40)), SamplingParams(max_tokens=5, prompt_logprobs=1)),
    ]
    direct = FakeEngine(setup)
    wanted: list[list[Event]] = []
    for prompt, params in cases:
        events: list[Event] = []
        done = threading.Event()

        def sink(event: Event, events: list[Event] = events, done: threading.Event = done) -> None:
            events.append(event)
            if isinstance(event, Ended):
                done.set()

        direct.submit(prompt, params, sink)
        assert done.wait(OUT_S)
        wanted.append(events)
    direct.close()

    async def go(remote: RemoteEngine, _: Desk) -> None:
        heard = [Heard() for _ in cases]
        for (prompt, params), each in zip(cases, heard, strict=True):
            await remote.admitted(remote.submit(prompt, params, each.put))
        for each, events in zip(heard, wanted, strict=True):
            await each.ended()
            assert each.events == events
            assert each.threads == {threading.get_ident()}
        status = await remote.status()
        assert (status.accepted, status.ended, status.running, status.waiting) == (3, 3, 0, 0)

    run(fake(), go)


def test_texts_stream_over_a_socket(fake: Callable[..., FakeEngine]) -> None:
    async def go(remote: RemoteEngine, _: Desk) -> None:
        llm = AsyncLLM.on(remote)
        found = [output async for output in llm.generate("Once", SamplingParams(max_tokens=12, ignore_eos=True))]
        assert len(found[-1].outputs[0].token_ids) == 12 and found[-1].finished
        async for _output in llm.generate("Once", ENDLESS):
            break
        await until(lambda: engine.running == 0)

    engine = fake()
    run(engine, go)


def test_refusals(setup: Setup) -> None:
    async def go(remote: RemoteEngine, _: Desk) -> None:
        with pytest.raises(RequestError, match="the prompt is empty"):
            remote.submit((), ENDLESS, Heard().put)
        first, second, third = Heard(), Heard(), Heard()
        await remote.admitted(remote.submit((1,), ENDLESS, first.put))
        await remote.admitted(remote.submit((2,), ENDLESS, second.put))
        number = remote.submit((3,), ENDLESS, third.put)
        with pytest.raises(QueueFull, match="2 requests wait already") as full:
            await remote.admitted(number)
        assert full.value.retry_after_s >= 1 and not third.events
        # Nobody waits for this one: its sink is told, and who asks later too.
        number = remote.submit((4,), ENDLESS, third.put)
        said = (await third.ended()).error
        assert said is not None and said.startswith("2 requests wait already")
        with pytest.raises(QueueFull, match="2 requests wait already"):
            await remote.admitted(number)
        assert [slot.state for slot in (await remote.status()).slots] == ["waiting"] * 2

    run(FakeEngine(setup, held=True, queue=2), go)


def test_only_a_front_that_was_told_the_queue_is_full_knocks(setup: Setup) -> None:
    engine = FakeEngine(setup, held=True, queue=1)

    async def go(remote: RemoteEngine, _: Desk) -> None:
        first = Heard()
        number = remote.submit((1,), ENDLESS, first.put, key="first")
        await remote.admitted(number)
        await remote.room("second", 1)  # it is full, but nobody has said so
        with pytest.raises(QueueFull):
            await remote.admitted(remote.submit((2,), ENDLESS, Heard().put, key="second"))
        several = await asyncio.gather(*(remote.room(f"more {n}", 1) for n in range(5)), return_exceptions=True)
        assert all(isinstance(each, QueueFull) and each.retry_after_s >= 1 for each in several)
        assert engine.gate.refused == 6 and len(engine.submitted) == 1
        cancelled = asyncio.ensure_future(remote.room("impatient", 1))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        remote.abort(number)
        await first.ended()
        await remote.room("nobody waits now", 1)
        again = Heard()
        await remote.admitted(remote.submit((2,), ENDLESS, again.put, key="second"))
        with pytest.raises(QueueFull):
            await remote.admitted(remote.submit((3,), ENDLESS, Heard().put))
        knock = asyncio.ensure_future(remote.room("late", 1))
        await asyncio.sleep(0)
        engine.fail("the engine broke")
        with suppress(QueueFull, Unavailable):  # or there is room again, since all that waited has ended
            await asyncio.wait_for(knock, OUT_S)
        await until(lambda: remote.lost is not None)
        await remote.room("lost: what follows says so", 1)

    run(engine, go)


def test_a_refusal_goes_with_whoever_hears_it(setup: Setup) -> None:
    """Without a collection: its traceback holds all of a request, which is not to hold it in turn."""

    async def refused(asks: Callable[[], Awaitable[None]]) -> weakref.ref[QueueFull]:
        try:
            await asks()
        except QueueFull as full:
            return weakref.ref(full)
        raise AssertionError("it was taken in")

    async def go(remote: RemoteEngine, _: Desk) -> None:
        await remote.admitted(remote.submit((1,), ENDLESS, Heard().put))
        gc.disable()
        try:
            for asks in (lambda: remote.admitted(remote.submit((2,), ENDLESS, Heard().put)), lambda: remote.room("again", 1)):
                gone = await refused(asks)
                await asyncio.sleep(0)  # the loop lets go of what it woke this with
                assert gone() is None
        finally:
            gc.enable()

    run(FakeEngine(setup, held=True, queue=1), go)


def test_time_is_up(setup: Setup) -> None:
    async def go(remote: RemoteEngine, _: Desk) -> None:
        heard = Heard()
        await remote.admitted(remote.submit((1,), ENDLESS, heard.put, timeout_s=0.01))
        assert (await heard.ended()).error == TIME_UP

    run(FakeEngine(setup, held=True), go)


def test_a_front_that_closes_takes_its_requests_with_it(setup: Setup) -> None:
    engine = FakeEngine(setup, held=True)

    async def go(remote: RemoteEngine, desk: Desk) -> None:
        other = await RemoteEngine.open(joined(desk), setup)
        mine, gone = Heard(), Heard()
        await remote.admitted(remote.submit((1, 2), SamplingParams(max_tokens=3, ignore_eos=True), mine.put))
        for n in range(5):
            await other.admitted(other.submit((n,), ENDLESS, gone.put))
        assert engine.running == 6
        assert {slot.front for slot in (await remote.status()).slots} == {1, 2}
        other.close()
        assert gone.events[-1] == Ended(5, "the engine was closed")
        await until(lambda: engine.running == 1)
        engine.allow(3)
        assert (await mine.ended()).error is None and len(mine.tokens) == 3

    run(engine, go)


def test_a_lost_engine_says_why(setup: Setup) -> None:
    engine = FakeEngine(setup, held=True)

    async def go(remote: RemoteEngine, desk: Desk) -> None:
        other = await RemoteEngine.open(joined(desk), setup)
        heard = [Heard() for _ in range(4)]
        for n, each in enumerate(heard):
            asked = (remote, other)[n % 2]
            await asked.admitted(asked.submit((n,), ENDLESS, each.put))
        engine.fail("rank 1 was lost")
        for each in heard:
            assert (await each.ended()).error == "rank 1 was lost"
        assert await asyncio.wait_for(remote.gone(), OUT_S) == await asyncio.wait_for(other.gone(), OUT_S) == "rank 1 was lost"
        with pytest.raises(Unavailable, match="rank 1 was lost"):
            remote.submit((1,), ENDLESS, heard[0].put)
        with pytest.raises(Unavailable, match="rank 1 was lost"):
            await other.status()

    run(engine, go)


def test_a_front_that_does_not_read_is_cut_off_alone(setup: Setup) -> None:
    engine = FakeEngine(setup)

    async def go(remote: RemoteEngine, desk: Desk) -> None:
        deaf = joined(desk)
        for number in range(20):
            asked = bridge.Submit(number, (1, number), SamplingParams(max_tokens=None, logprobs=20, n=8, ignore_eos=True))
            deaf.sendall(bridge.frame(asked))
        await until(lambda: bool(engine.aborted) and engine.running == 0)
        heard = Heard()
        remote.submit((1, 2), SamplingParams(max_tokens=50, ignore_eos=True), heard.put)
        assert (await heard.ended()).error is None and len(heard.tokens) == 50
        deaf.close()

    run(engine, go, buffer_bytes=2**18)


def test_a_front_that_is_cut_off_does_not_wait_for_the_engine_to_end(setup: Setup) -> None:
    """The engine lives, so nothing can say how it ended; the front's requests end all the same."""
    asked: list[float] = []

    async def main() -> None:
        ours, theirs = socket.socketpair()

        def why(timeout_s: float) -> None:
            asked.append(timeout_s)

        front = await RemoteEngine.open(ours, setup, why)
        heard = Heard()
        front.submit((1,), ENDLESS, heard.put)
        theirs.close()
        assert "connection to the engine's process was lost" in str((await heard.ended()).error)
        assert asked == [WHY_S]

    asyncio.run(main())


def spoiled(chance: random.Random) -> bytes:
    """Bytes that a broken front might send."""
    good = bridge.frame(bridge.Submit(1, (1, 2, 3), ENDLESS))
    kind = chance.randrange(5)
    if kind == 0:
        return chance.randbytes(chance.randrange(1, 200))
    if kind == 1:  # announced far too long
        return (bridge.LIMIT_BYTES + 1 + chance.randrange(2**20)).to_bytes(4, "little") + good
    if kind == 2:
        at = chance.randrange(4, len(good))
        return good[:at] + bytes([good[at] ^ (1 << chance.randrange(8))]) + good[at + 1 :]
    if kind == 3:  # nested without end
        return (60000).to_bytes(4, "little") + b"\x91" * 60000
    return bridge.frame(bridge.Gone("not for a front to say"))


def test_spoiled_frames_cost_nobody_else_anything(setup: Setup) -> None:
    engine = FakeEngine(setup)
    chance = random.Random(11)

    async def go(remote: RemoteEngine, desk: Desk) -> None:
        heard = Heard()
        remote.submit((4, 4), SamplingParams(max_tokens=300, ignore_eos=True), heard.put)
        for _ in range(300):
            with joined(desk) as sock:
                sock.sendall(spoiled(chance))
        with joined(desk) as sock:  # and one whose connection must be closed for it
            sock.sendall(bridge.frame(bridge.Gone("not for a front to say")))
            sock.settimeout(OUT_S)
            assert await asyncio.to_thread(sock.recv, 1) == b""
        assert (await heard.ended()).error is None and len(heard.tokens) == 300
        await until(lambda: engine.running == 0)
        assert (await remote.status()).slots == ()

    run(engine, go)
