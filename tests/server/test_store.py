"""What is kept of responses: apart for each tenant, bounded by number, bytes and age; a tape is read from any place."""

from __future__ import annotations

import asyncio
import random

import pytest

from shardwise.server.refusal import Refusal
from shardwise.server.store import Kept, Store, Tape


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make(most: int = 100, most_bytes: int = 10**6, age_s: float = 3600.0, clock: Clock | None = None) -> Store:
    return Store(most, most_bytes, age_s, clock or Clock())


def kept(id: str, size: int = 10) -> Kept:
    return Kept(id, response=None, context=(), given=0, bytes=size)


def ids(store: Store, tenant: str) -> list[str]:
    return [each.id for each in store.all(tenant)]


def test_tenants_know_nothing_of_each_other():
    store = make()
    store.keep("a", kept("one"))
    assert store.get("a", "one").id == "one"
    for tenant in ("b", ""):
        with pytest.raises(Refusal, match=r"no response 'one' is kept here: they are kept for 1 h") as refused:
            store.get(tenant, "one")
        assert refused.value.status == 404
        with pytest.raises(Refusal):
            store.drop(tenant, "one")
    store.drop("a", "one")
    assert len(store) == 0 and store.bytes == 0


def test_what_is_old_goes():
    clock = Clock()
    store = make(age_s=100, clock=clock)
    for n in range(3):
        clock.now = 40.0 * n
        store.keep("a", kept(str(n)))
    clock.now = 139.0
    assert ids(store, "a") == ["2", "1"]
    clock.now = 181.0
    with pytest.raises(Refusal):
        store.get("a", "2")
    assert len(store) == 0


def test_the_bounds_hold_and_the_oldest_of_the_largest_tenant_goes_first():
    chance = random.Random(1)
    store = make(most=20, most_bytes=500)
    store.keep("small", kept("precious", 5))
    for n in range(500):
        store.keep("large", kept(str(n), chance.randrange(100)))
        assert len(store) <= 20 and store.bytes <= 500
        assert ids(store, "large") == [str(n - m) for m in range(len(store) - 1)]
    assert ids(store, "small") == ["precious"]


def test_one_that_is_larger_than_all_is_not_kept_and_does_no_harm():
    store = make(most_bytes=100)
    store.keep("b", kept("other"))
    store.keep("a", kept("huge", 1000))
    assert ids(store, "a") == [] and ids(store, "b") == ["other"]


def test_what_runs_stays_and_dropping_it_ends_it():
    async def scene() -> None:
        store = make(most=1)
        run = asyncio.create_task(asyncio.Event().wait())
        runs = kept("runs")
        runs.run = run  # type: ignore[assignment]
        store.keep("a", runs)
        store.keep("a", kept("later"))
        assert ids(store, "a") == ["runs"]
        store.drop("a", "runs")
        with pytest.raises(asyncio.CancelledError):
            await run
        assert len(store) == 0

    asyncio.run(scene())


def test_a_tape_is_read_while_it_is_written_and_afterwards():
    async def scene() -> None:
        tape = Tape()
        tape.write(b"0")

        async def read(start: int) -> bytes:
            return b"".join([frame async for frame in tape.read(start)])

        readers = [asyncio.create_task(read(start)) for start in (0, 1, 3)]
        for n in range(1, 5):
            await asyncio.sleep(0)
            tape.write(str(n).encode())
        tape.end()
        assert await asyncio.gather(*readers) == [b"01234", b"1234", b"34"]
        assert await read(2) == b"234" and await read(9) == b""

    asyncio.run(scene())
