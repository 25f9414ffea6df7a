"""`AsyncLLM` on a fake engine: outputs that grow, cancelling, leaving, closing; nothing hangs, nothing is left open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise

import pytest

from shardwise import AsyncLLM, RequestError, RequestOutputKind, SamplingParams, ShardwiseError
from shardwise.engine.fake import FakeEngine
from tests.test_llm import ENDLESS, until

Make = Callable[..., FakeEngine]


def test_async_outputs_grow(fake: Make):
    async def go() -> None:
        llm = AsyncLLM.on(fake())
        texts = [output.outputs[0].text async for output in llm.generate("Once", SamplingParams(max_tokens=9))]
        assert all(later.startswith(sooner) for sooner, later in pairwise(texts))
        params = SamplingParams(max_tokens=9, output_kind=RequestOutputKind.DELTA)
        deltas = [output async for output in llm.generate("Once", params, "mine")]
        assert "".join(output.outputs[0].text for output in deltas) == texts[-1]
        assert [output.finished for output in deltas][-1] and not any(output.finished for output in deltas[:-1])
        assert {output.request_id for output in deltas} == {"mine"}
        last = [o async for o in llm.generate("Once", SamplingParams(max_tokens=9, output_kind=RequestOutputKind.FINAL_ONLY))]
        assert [output.outputs[0].text for output in last] == [texts[-1]]
        chatted = [output async for output in llm.chat([{"role": "user", "content": "Hi"}])]
        assert "Hi" in chatted[-1].prompt and chatted[-1].finished

    asyncio.run(go())


def test_many_at_once_on_one_loop(fake: Make):
    async def go() -> None:
        llm = AsyncLLM.on(fake())

        async def one(n: int) -> int:
            async for output in llm.generate(f"prompt {n}", SamplingParams(max_tokens=n % 7 + 1)):
                last = output
            assert last.prompt == f"prompt {n}"
            return len(last.outputs[0].token_ids)

        assert await asyncio.gather(*(one(n) for n in range(200))) == [n % 7 + 1 for n in range(200)]

    asyncio.run(go())


def test_leaving_the_iteration_aborts(fake: Make):
    engine = fake(held=True)

    async def go() -> None:
        llm = AsyncLLM.on(engine)
        engine.allow(1)
        async for _ in llm.generate("a", ENDLESS):
            break
        assert engine.aborted == [1]
        engine.allow(1)
        async with llm.generate("a", ENDLESS) as stream:
            await anext(stream)
        assert engine.aborted == [1, 2]
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    asyncio.run(go())
    assert engine.running == 0


def test_cancelling_aborts(fake: Make):
    engine = fake(held=True)

    async def go() -> None:
        llm = AsyncLLM.on(engine)

        async def endless() -> None:
            async for _ in llm.generate("a", ENDLESS):
                pass

        task = asyncio.create_task(endless())
        await asyncio.to_thread(until, lambda: engine.running == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.aborted == [1]

    asyncio.run(go())


def test_abort_by_name_ends_the_iteration_with_what_there_is(fake: Make):
    engine = fake(held=True)

    async def go() -> None:
        llm = AsyncLLM.on(engine)
        engine.allow(2)
        stream = llm.generate("a", ENDLESS, "mine")
        await anext(stream)
        with pytest.raises(RequestError, match="request_id 'mine' is that of a request under way"):
            llm.generate("b", ENDLESS, "mine")
        llm.abort("mine")
        llm.abort("nobody's")
        outputs = [output async for output in stream]
        assert outputs[-1].finished and outputs[-1].outputs[0].finish_reason == "abort"
        assert llm.generate("b", ENDLESS, "mine").request_id == "mine"

    asyncio.run(go())


def test_async_errors(fake: Make):
    async def go() -> None:
        llm = AsyncLLM.on(fake(lambda _prompt, _choice, _place: -1))
        with pytest.raises(RequestError, match="the prompt is 5"):
            await anext(llm.generate(5))
        with pytest.raises(RequestError, match="sampling_params is 5"):
            llm.generate("a", 5)
        with pytest.raises(ShardwiseError, match="request 3 failed: no finite logits at token 0"):
            stream = llm.generate("a", request_id="3")
            await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        llm.close()
        with pytest.raises(ShardwiseError, match="closed"):
            await anext(llm.generate("a"))

    asyncio.run(go())


def test_closing_ends_streams(fake: Make):
    engine = fake(held=True)

    async def go() -> None:
        llm = AsyncLLM.on(engine)
        task = asyncio.ensure_future(anext(llm.generate("a", ENDLESS)))
        await asyncio.to_thread(until, lambda: engine.running == 1)
        llm.close()
        with pytest.raises(ShardwiseError, match="the engine was closed"):
            await task

    asyncio.run(go())


def test_a_loop_that_ends_first_is_no_harm(fake: Make):
    engine = fake(held=True)
    llm = AsyncLLM.on(engine)
    kept = []

    async def go() -> None:
        engine.allow(1)
        kept.append(llm.generate("a", ENDLESS))
        await anext(kept[0])

    asyncio.run(go())
    engine.allow(5)
    until(lambda: engine.running == 0)
    assert engine.aborted == [1]


def test_a_grammar_is_checked_beside_the_loop(fake: Make):
    """Others go on while one that explodes is found out, which takes its process a second."""

    async def go() -> None:
        llm = AsyncLLM.on(fake())
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        with pytest.raises(RequestError, match="takes more than 1 s"):
            async for _ in llm.generate("a", SamplingParams(structured_outputs={"regex": "a*" * 10000})):
                pass
        ticking.cancel()
        assert ticks > 10
        last = [o async for o in llm.generate("a", SamplingParams(structured_outputs={"choice": ["b"]}, max_tokens=2))]
        assert last[-1].finished

    asyncio.run(go())
