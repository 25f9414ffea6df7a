"""What `/v1/completions` takes and gives."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from shardwise.sched.request import MAX_CHOICES, MAX_LOGPROBS
from shardwise.server.fields import Begins, KeptTokens, ModelName, Priority, RequestId, Salt, Streams, Unused
from shardwise.server.logprobs import PromptLogprob, TextLogprobs
from shardwise.server.sampling import SamplingBody, StreamOptions
from shardwise.server.usage import UsageReply


class CompletionBody(SamplingBody, kw_only=True):
    """A prompt to continue, or several."""

    prompt: Annotated[
        str | list[str | int | list[int]], Meta(description="Text, token ids, or a list of either; each is continued apart.")
    ]
    model: ModelName | None = None
    echo: Annotated[bool, Meta(description="Give the prompt back before the answer; with logprobs, those of both.")] = False
    logprobs: (
        Annotated[
            int, Meta(ge=0, le=MAX_LOGPROBS, description="Log-probabilities of the tokens, with so many of the likeliest.")
        ]
        | None
    ) = None
    best_of: (
        Annotated[
            int,
            Meta(
                ge=0,
                le=MAX_CHOICES,
                description="Draw so many answers, give the n of the highest mean log-probability; 0 is as not given.",
            ),
        ]
        | None
    ) = None
    suffix: Annotated[str, Meta(description="Refused: the text behind the gap is for models that fill gaps.")] | None = None
    stream: Streams | None = None
    stream_options: Annotated[StreamOptions | None, Meta(description="What a stream tells besides the answer.")] = None
    add_special_tokens: Begins = True
    truncate_prompt_tokens: KeptTokens | None = None
    return_token_ids: Annotated[bool, Meta(description="Give the token ids of prompt and answer.")] | None = None
    return_tokens_as_token_ids: Annotated[bool, Meta(description="Name tokens in logprobs as token_id:N.")] | None = None
    priority: Priority = 0
    cache_salt: Salt | None = None
    request_id: RequestId | None = None
    user: Unused | None = None


class TextChoice(msgspec.Struct, gc=False):
    """One answer, or what is new of it. `index` is the prompt's times n, plus the choice's."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[dict[int, PromptLogprob] | None] | UnsetType | None = UNSET


class CompletionReply(msgspec.Struct, kw_only=True):
    """All answers."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: UsageReply
    system_fingerprint: str
