"""The endpoints of embeddings, scores and ranks: bodies are read, run, and answered when all is there."""

from __future__ import annotations

from shardwise.engine.front import Running
from shardwise.engine.likelihood import SCORING, Pair
from shardwise.engine.outputs import RequestOutput
from shardwise.server.call import Call
from shardwise.server.embeddings import EmbeddingBody, EmbeddingReply, read, reply
from shardwise.server.frames import new_id, now
from shardwise.server.job import Job, Vectors
from shardwise.server.reply import Json, Reply
from shardwise.server.route import Route
from shardwise.server.score import (
    RerankBody,
    RerankReply,
    ScoreBody,
    ScoreReply,
    read_rerank,
    read_score,
    rerank_reply,
    score_reply,
)
from shardwise.server.service import Service
from shardwise.server.turn import tenant


async def embed(service: Service, call: Call, body: EmbeddingBody) -> Reply:
    """A vector for each input."""
    model, front = service.model(body.model), service.front
    shared = tenant(call, body.cache_salt)
    asked = await service.read(
        read, body, front.tokenizer, service.engine.setup, tenant=shared, most=service.settings.max_prompts
    )
    async with Vectors(service, call) as vectors:
        await vectors.start(asked.prompts, asked.params, body.priority)
        done = await vectors.ended()
    return Json(await service.read(reply, body, done, model))


async def score(service: Service, call: Call, body: ScoreBody) -> Reply:
    """A number for each pair."""
    model, shared = service.model(body.model), tenant(call, body.cache_salt)
    pairs = await service.read(
        read_score, body, service.front.tokenizer, service.engine.setup, tenant=shared, most=service.settings.max_prompts
    )
    done = await _scored(service, call, pairs, body.priority)
    return Json(await service.read(lambda: score_reply(pairs, _outputs(done), model, new_id("score-"), now())))


async def rerank(service: Service, call: Call, body: RerankBody) -> Reply:
    """Documents in the order of how likely they make the query."""
    model, shared = service.model(body.model), tenant(call, body.cache_salt)
    pairs = await service.read(
        read_rerank, body, service.front.tokenizer, service.engine.setup, tenant=shared, most=service.settings.max_prompts
    )
    done = await _scored(service, call, pairs, body.priority)
    return Json(await service.read(lambda: rerank_reply(body, pairs, _outputs(done), model, new_id("rerank-"))))


async def _scored(service: Service, call: Call, pairs: tuple[Pair, ...], priority: int) -> list[Running]:
    async with Job(service, call) as job:
        await job.start([pair.prompt for pair in pairs], [SCORING] * len(pairs), priority)
        return await job.ended()


def _outputs(done: list[Running]) -> list[RequestOutput]:
    return [running.transcript.output() for running in done]


ROUTES = (
    Route(
        "POST", ("/v1/embeddings", "/embeddings"), embed, "Turn texts into vectors.", "embeddings",
        queued=True, body=EmbeddingBody, reply=EmbeddingReply, example={"input": ["The cat", "The dog"]},
    ),
    Route(
        "POST", ("/v1/score", "/score"), score, "Tell how likely one text is after another.", "embeddings",
        queued=True, body=ScoreBody, reply=ScoreReply, example={"text_1": "Once upon", "text_2": [" a time", " a mattress"]},
    ),
    Route(
        "POST", ("/v1/rerank", "/rerank", "/v2/rerank"), rerank, "Put documents in the order of a query.", "embeddings",
        queued=True, body=RerankBody, reply=RerankReply,
        example={"query": "What is a cat?", "documents": ["An animal.", "A colour."]},
    ),
)  # fmt: skip
