"""Small endpoints for tests of the shell: words in, tokens of the fake engine out, whole or as a stream; one that breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

import msgspec

from shardwise.sched.request import SamplingParams
from shardwise.server.call import Call
from shardwise.server.job import Job
from shardwise.server.refusal import Refusal
from shardwise.server.reply import DONE, Events, Json, Reply, sse
from shardwise.server.route import Route
from shardwise.server.routes import ROUTES
from shardwise.server.service import Service


class Item(msgspec.Struct):
    role: Literal["user", "system"]
    content: str | None = None


class Ask(msgspec.Struct):
    """What to go on from."""

    prompt: Annotated[str, msgspec.Meta(description="The beginning.")]
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=100_000, description="How many tokens to make.")] = 4
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] = 0.0
    stream: bool = False
    items: Annotated[list[Item], msgspec.Meta(max_length=8)] = []
    extra: dict[str, Any] | None = None
    seed: int | None = None


class Told(msgspec.Struct):
    ids: list[int]
    tenant: str


async def demo(service: Service, call: Call, body: Ask) -> Reply:
    job = Job(service, call)
    params = SamplingParams(max_tokens=body.max_tokens, temperature=0.0, ignore_eos=True)
    if not body.stream:
        async with job:
            await job.start([service.front.prompt(body.prompt)], [params])
            ids = [token async for news in job for _, output in news for token in output.token_ids]
        return Json(Told(ids, call.tenant))
    try:
        await job.start([service.front.prompt(body.prompt)], [params])
    except BaseException:
        job.abort()
        raise

    async def frames() -> AsyncGenerator[bytes, None]:
        async with job:
            async for news in job:
                for _, output in news:
                    yield sse({"ids": list(output.token_ids)})
        yield DONE

    return Events(frames())


async def breaks(_service: Service, _call: Call, _body: Any) -> Reply:
    raise KeyError("a secret of the prompt")


closed: list[str] = []
"""The ids of the calls whose flood was closed."""


async def flood(_service: Service, call: Call, _body: Any) -> Reply:
    async def frames() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield sse("x" * 32_000)
                await asyncio.sleep(
                    0
                )  # as real ones wait for an engine: a loop that never turns hears of no client that leaves
        finally:
            closed.append(call.id)

    return Events(frames())


async def fails_late(_service: Service, _call: Call, _body: Any) -> Reply:
    async def frames() -> AsyncGenerator[bytes, None]:
        yield sse({"ids": [1]}, "delta")
        raise KeyError("a secret of the prompt")

    return Events(frames())


def other_shape(refusal: Refusal, call: Call) -> dict[str, object]:
    """As an API has it that is not OpenAI's."""
    return {"type": "error", "said": refusal.message, "request": call.id}


async def named(_service: Service, _call: Call, body: Any) -> Reply:
    return Json(body)


DEMO = (
    *ROUTES,
    Route(
        "POST",
        ("/v1/demo",),
        demo,
        "Goes on from a prompt.",
        "demo",
        body=Ask,
        reply=Told,
        streams=True,
        example={"prompt": "Once"},
    ),
    Route("GET", ("/v1/breaks",), breaks, "Always fails.", "demo"),
    Route("GET", ("/v1/flood",), flood, "Never ends.", "demo", streams=True),
    Route("GET", ("/v1/late",), fails_late, "Fails after it began.", "demo", streams=True),
    Route("GET", ("/v1/other/late",), fails_late, "The same with errors of its own.", "demo", errors=other_shape),
    Route("GET", ("/v1/other/breaks",), breaks, "Always fails, with errors of its own.", "demo", errors=other_shape),
    Route("GET", ("/v1/named/{name}",), named, "Its parameters.", "demo"),
    Route("GET", ("/v1/named/{name}/twice",), named, "Its parameters.", "demo"),
)
