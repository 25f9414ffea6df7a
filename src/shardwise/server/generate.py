"""`/inference/v1/generate`: token ids in, token ids out, for loops that train and tools that tokenise by themselves."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from shardwise.engine.complete import Prompt
from shardwise.engine.outputs import CompletionOutput
from shardwise.engine.prompts import read_prompt
from shardwise.sched.request import SamplingParams
from shardwise.server.call import Call
from shardwise.server.fields import ModelName, Priority, RequestId, Salt, Streams
from shardwise.server.fits import check_fits
from shardwise.server.frames import Frames, begun, new_id
from shardwise.server.job import Job
from shardwise.server.logprobs import ChatLogprobs, PromptLogprob, Speller, prompt_shape, wanted_beside
from shardwise.server.reply import DONE, Json, Reply
from shardwise.server.route import Route
from shardwise.server.sampling import StreamOptions, check_prompt_scores, sampling
from shardwise.server.service import Service
from shardwise.server.turn import started, tenant
from shardwise.server.usage import UsageReply, told


class GenerateBody(msgspec.Struct, kw_only=True):
    """Token ids to continue, and how, as in vLLM's GenerateRequest."""

    token_ids: Annotated[list[int], Meta(description="The prompt.")]
    sampling_params: Annotated[dict[str, Any], Meta(description="By the names of the other endpoints.")] = {}
    model: ModelName | None = None
    stream: Streams | None = None
    stream_options: Annotated[StreamOptions | None, Meta(description="What a stream tells besides the answer.")] = None
    priority: Priority = 0
    cache_salt: Salt | None = None
    request_id: RequestId | None = None


class TokensChoice(msgspec.Struct):
    """One continuation, or what is new of it."""

    index: int
    token_ids: list[int]
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class GenerateReply(msgspec.Struct):
    """All continuations."""

    request_id: str
    model: str
    choices: list[TokensChoice]
    usage: UsageReply
    prompt_logprobs: list[dict[int, PromptLogprob] | None] | None = None


async def generate(service: Service, call: Call, body: GenerateBody) -> Reply:
    """All at once, or as a stream."""
    model, made = service.model(body.model), new_id("" if body.request_id else "gen-", body.request_id)
    prompt, params = await service.read(_read, service, call, body)
    job = await started(service, call, [prompt], [params], body.priority)
    tokens = _Tokens(service, params)
    if body.stream:
        return await begun(_stream(job, tokens, Frames({"request_id": made, "model": model}, body.stream_options)))
    async with job:
        async for batch in job:
            for _, output in batch:
                tokens.take(output)
        scores = job.scores(0)
        shown = None if scores is None else await service.read(prompt_shape, scores)
        return Json(GenerateReply(made, model, tokens.whole, told(job.usage), shown))


async def _stream(job: Job, tokens: _Tokens, frames: Frames) -> AsyncGenerator[bytes, None]:
    async with job:
        yield b""
        async for batch in job:
            usage = job.usage if frames.counts else None
            yield b"".join([frames.choice(tokens.news(output), usage) for _, output in batch])
        if frames.ends_with_usage:
            yield frames.usage(job.usage)
        yield DONE


def _read(service: Service, call: Call, body: GenerateBody) -> tuple[Prompt, SamplingParams]:
    values: Mapping[str, Any] = {name: value for name, value in body.sampling_params.items() if name != "detokenize"}
    params = sampling(service, values)
    check_prompt_scores(params.prompt_logprobs, streams=body.stream)
    # The text is made only where a stop string is looked for in it.
    params = params if params.stop else replace(params, detokenize=False)
    prompt = replace(read_prompt(body.token_ids, service.front.tokenizer, "token_ids"), tenant=tenant(call, body.cache_salt))
    check_fits(service.engine.setup, prompt.ids, params, "token_ids")
    return prompt, params


class _Tokens:
    """The continuations as they come: what is new, and all of it."""

    def __init__(self, service: Service, params: SamplingParams) -> None:
        self.whole = [TokensChoice(n, [], None if params.logprobs is None else ChatLogprobs([])) for n in range(params.n)]
        self._speller, self._top = Speller(service.front.tokenizer), wanted_beside(params)

    def news(self, output: CompletionOutput) -> TokensChoice:
        """What is new of a choice."""
        scored = None if output.logprobs is None else ChatLogprobs(self._speller.chat(output.logprobs, self._top))
        return TokensChoice(output.index, output.token_ids, scored, output.finish_reason)

    def take(self, output: CompletionOutput) -> None:
        """Adds it to the whole."""
        new = self.news(output)
        whole = self.whole[new.index]
        whole.token_ids += new.token_ids
        if whole.logprobs is not None and new.logprobs is not None:
            whole.logprobs.content += new.logprobs.content
        whole.finish_reason = new.finish_reason


ROUTES = (
    Route(
        "POST", ("/inference/v1/generate",), generate, "Continue token ids with token ids.", "tokens",
        body=GenerateBody, reply=GenerateReply, streams=True, queued=True,
        example={"token_ids": [9, 10, 11], "sampling_params": {"max_tokens": 8}},
    ),
)  # fmt: skip
