"""`/v1/embeddings`: what it takes and gives, and how one becomes the other. Knows no HTTP, and waits for nothing.

A body is read to prompts and what is wanted of them; whoever runs these gives the ended ones back for the reply.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from shardwise.engine.complete import Prompt
from shardwise.engine.embed import Pooling, check_dimensions
from shardwise.engine.prompts import last_ids, read_prompt
from shardwise.engine.setup import Setup
from shardwise.engine.text import Tokenizer
from shardwise.errors import RequestError
from shardwise.sched.pooling import PoolingParams, packed
from shardwise.sched.request import MOST
from shardwise.server.fields import MAX_INPUTS, Begins, KeptTokens, ModelName, Priority, Salt, Unused, check_count
from shardwise.server.fits import check_fits
from shardwise.server.refusal import Refusal


class EmbeddingBody(msgspec.Struct, kw_only=True):
    """Texts to turn into vectors: the model's final hidden states, pooled."""

    input: Annotated[
        str | list[str | int | list[int]],
        Meta(description=f"A text, its token ids, or a list of up to {MAX_INPUTS} of either."),
    ]
    model: ModelName | None = None
    encoding_format: Annotated[
        Literal["float", "base64"], Meta(description="base64 is of the numbers as float32 in little-endian order.")
    ] = "float"
    dimensions: (
        Annotated[int, Meta(ge=1, le=MOST, description="Keep only so many numbers, the first, and normalise these.")] | None
    ) = None
    pooling: Annotated[
        Literal["last", "mean"], Meta(description="The state of the last token, or the mean of all tokens'.")
    ] = "last"
    normalize: Annotated[bool, Meta(description="Divide each vector by its length.")] = True
    truncate_prompt_tokens: KeptTokens | None = None
    add_special_tokens: Begins = True
    priority: Priority = 0
    cache_salt: Salt | None = None
    user: Unused | None = None


class EmbeddingData(msgspec.Struct):
    """One vector, as numbers or as base64; `index` is that of its input."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class PromptUsage(msgspec.Struct):
    """Tokens of all inputs; nothing is generated."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class EmbeddingReply(msgspec.Struct):
    """One vector for each input, in their order."""

    data: list[EmbeddingData]
    model: str
    usage: PromptUsage
    object: str = "list"


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to run: `params` for each of the prompts, of which the reply is made in their order."""

    prompts: tuple[Prompt, ...]
    params: PoolingParams


def read(body: EmbeddingBody, tokenizer: Tokenizer, setup: Setup, *, tenant: str = "", most: int = MAX_INPUTS) -> Asked:
    """Checks and tokenises; blocks. RequestError or Refusal for what cannot run: also a prompt that is too long, or more than
    `most` of them."""
    _dimensions(body, setup)
    params = PoolingParams(body.pooling)
    prompts = []
    inputs = listed_input(body.input)
    check_count(len(inputs), most, "input")
    several = not isinstance(body.input, str) and not isinstance(body.input[0], int)
    for n, given in enumerate(inputs):
        name = f"input[{n}]" if several else "input"
        prompt = read_prompt(given, tokenizer, name, add_special_tokens=body.add_special_tokens)
        ids = last_ids(prompt.ids, body.truncate_prompt_tokens, setup.context)
        check_fits(setup, ids, params, "input", name=name)
        prompts.append(replace(prompt, ids=ids, tenant=tenant))
    return Asked(tuple(prompts), params)


def reply(body: EmbeddingBody, done: Sequence[Pooling], model: str) -> EmbeddingReply:
    """What the client gets, of requests that have ended well and are in the order of the prompts. ShardwiseError where one
    failed. Blocks: to normalise and encode long vectors takes time."""
    data = []
    for index, one in enumerate(done):
        vector = one.output(normalize=body.normalize, dimensions=body.dimensions).outputs.embedding
        shown = vector if body.encoding_format == "float" else base64.b64encode(packed(vector)).decode()
        data.append(EmbeddingData(index, shown))
    return EmbeddingReply(data, model, usage_of([one.prompt for one in done]))


def usage_of(prompts: Sequence[Prompt]) -> PromptUsage:
    """The tokens of all prompts."""
    count = sum(len(prompt.ids) for prompt in prompts)
    return PromptUsage(count, count)


def listed_input(given: str | Sequence[str | int | Sequence[int]]) -> list[str | Sequence[int]]:
    """The inputs one by one: a list of numbers is one of them. Refusal where there are none, or a mixture."""
    if isinstance(given, str):
        return [given]
    if given and isinstance(given[0], int):
        numbers = [each for each in given if isinstance(each, int)]
        if len(numbers) < len(given):
            place = next(n for n, each in enumerate(given) if not isinstance(each, int))
            raise Refusal(400, f"input[{place}] is no token id, but input[0] is; send one kind in a list", param="input")
        return [numbers]
    found = [each for each in given if not isinstance(each, int)]
    if len(found) < len(given):
        place = next(n for n, each in enumerate(given) if isinstance(each, int))
        raise Refusal(400, f"input[{place}] is a token id, but input[0] is not; send one kind in a list", param="input")
    if not found:
        raise Refusal(400, "input is empty; send at least one text", param="input")
    return found


def _dimensions(body: EmbeddingBody, setup: Setup) -> None:
    try:
        check_dimensions(body.dimensions, setup.layout.model.hidden)
    except RequestError as error:
        raise Refusal(400, str(error), param="dimensions") from None
