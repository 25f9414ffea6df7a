"""Other ranks, asked for and told of over a socket: every front is bound by the same setup as the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from shardwise.engine.desk import Desk
from shardwise.engine.fake import FakeEngine
from shardwise.engine.remote import RemoteEngine
from shardwise.errors import Conflict, LayoutError, RequestError, TooLong, Unavailable, UserError
from shardwise.sched.pooling import PoolingParams
from shardwise.sched.request import SamplingParams
from tests.engine.test_bridge import ENDLESS, Heard, joined, run, until

SHORT = SamplingParams(max_tokens=4, ignore_eos=True)


@pytest.fixture
def engine(fake: Callable[..., FakeEngine]) -> FakeEngine:
    return fake()


def test_all_fronts_are_told_and_who_comes_later_too(engine: FakeEngine) -> None:
    begun = engine.setup

    async def go(remote: RemoteEngine, desk: Desk) -> None:
        other = await RemoteEngine.open(joined(desk), begun)
        await remote.recut((2.0, 1.0, 1.0))
        assert remote.setup == engine.setup and remote.setup.layout.shares.mlp == (2.0, 1.0, 1.0)
        await until(lambda: other.setup == engine.setup)
        late = await RemoteEngine.open(joined(desk), begun)
        await until(lambda: late.setup == engine.setup)
        await remote.recut((1.0,) * begun.layout.mesh.tp)
        await until(lambda: all(each.setup.layout == begun.layout for each in (remote, other, late)))
        for each in (other, late):
            each.close()

    run(engine, go)


def test_requests_go_on_meanwhile_and_the_next_ones_are_bound_by_what_serves(engine: FakeEngine) -> None:
    engine.slow_to_form = True
    context = engine.setup.context

    async def go(remote: RemoteEngine, _: Desk) -> None:
        before, after = Heard(), Heard()
        number = remote.submit((5, 6), ENDLESS, before.put)
        asked = asyncio.create_task(remote.recut((1.0, 1.0)))
        await until(lambda: engine.forming and len(before.events) > 3)
        with pytest.raises(Conflict, match="already"):
            await remote.recut((1.0,))
        assert not asked.done()
        engine.form(context=100)
        await asked
        remote.abort(number)
        assert (await before.ended()).error is None
        with pytest.raises(TooLong, match="by what the memory holds"):
            remote.submit((5,) * 100, SHORT, after.put)
        await remote.admitted(remote.submit((5,) * 90, SHORT, after.put))
        assert (await after.ended()).error is None and context > 100

    run(engine, go)


@pytest.mark.parametrize(("shares", "said"), [((1.0,) * 99, "the largest that works is -tp"), ((1.0, -1.0), "positive")])
def test_what_cannot_be_is_refused_across_the_socket(engine: FakeEngine, shares: tuple[float, ...], said: str) -> None:
    async def go(remote: RemoteEngine, _: Desk) -> None:
        with pytest.raises(UserError, match=said) as refused:
            await remote.recut(shares)
        assert not isinstance(refused.value, RequestError | LayoutError), "what it was does not travel, what it said does"

    run(engine, go)


def test_an_engine_that_ends_answers(engine: FakeEngine) -> None:
    engine.slow_to_form = True

    async def go(remote: RemoteEngine, _: Desk) -> None:
        asked = asyncio.create_task(remote.recut((1.0,)))
        await until(lambda: engine.forming)
        engine.fail("rank 1 was lost")
        with pytest.raises(Unavailable, match="rank 1 was lost"):
            await asyncio.wait_for(asked, 30)
        with pytest.raises(Unavailable, match="rank 1 was lost"):
            await remote.recut((1.0,))

    run(engine, go)


@pytest.mark.parametrize("params", [SHORT, PoolingParams()])
def test_who_does_not_fit_any_more_is_known_by_it(engine: FakeEngine, params: SamplingParams | PoolingParams) -> None:
    engine.unfit = "there is less room"

    async def go(remote: RemoteEngine, _: Desk) -> None:
        heard = Heard()
        remote.submit((5, 6), params, heard.put)
        ended = await heard.ended()
        assert (ended.error, ended.unfit, ended.asked) == ("there is less room", True, False)

    run(engine, go)
