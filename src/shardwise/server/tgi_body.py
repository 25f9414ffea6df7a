"""What TGI's own endpoints take and give, by the names that huggingface_hub knows (its generated types)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from shardwise.sched.request import MAX_CHOICES, MAX_LOGPROBS, MOST, SEEDS

Finish = Literal["length", "eos_token", "stop_sequence"]


class Parameters(msgspec.Struct, kw_only=True):
    """How to continue. Without do_sample or a field that asks for it, the likeliest token is taken."""

    max_new_tokens: Annotated[int, Meta(ge=1, le=MOST, description="The most tokens; 100 if absent.")] | None = None
    do_sample: Annotated[bool, Meta(description="Draw the tokens.")] | None = None
    temperature: Annotated[float, Meta(ge=0, le=100, description="Higher is more varied.")] | None = None
    top_k: Annotated[int, Meta(ge=1, le=MOST, description="Draw from so many of the likeliest tokens.")] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1, description="Draw from those that have this probability in all.")] | None = None
    typical_p: Annotated[float, Meta(description="Refused below 1: typical sampling is not done here.")] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100, description="Above 1, less repetition.")] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2, description="Against tokens as often as they came.")] | None = None
    seed: Annotated[int, Meta(ge=0, le=SEEDS - 1, description="The same seed gives the same text.")] | None = None
    stop: Annotated[list[str], Meta(description="The text ends behind any of these.")] | None = None
    return_full_text: Annotated[bool, Meta(description="Give the input before the text.")] | None = None
    details: Annotated[bool, Meta(description="Tell the tokens.")] = False
    decoder_input_details: Annotated[bool, Meta(description="Tell the tokens of the input; not in streams.")] = False
    top_n_tokens: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS, description="Tell so many of the likeliest.")] | None = None
    best_of: (
        Annotated[int, Meta(ge=1, le=MAX_CHOICES, description="Draw so many, give the likeliest; not in streams.")] | None
    ) = None
    truncate: Annotated[int, Meta(ge=1, le=MOST, description="Keep only so many tokens of the input, the last.")] | None = None
    grammar: Annotated[dict[str, Any], Meta(description="{type: json | regex | json_schema, value}.")] | None = None
    watermark: Annotated[bool, Meta(description="Refused if true: texts are not marked here.")] = False
    adapter_id: Annotated[str, Meta(description="Refused: there are no adapters.")] | None = None


class TextBody(msgspec.Struct, kw_only=True):
    """A text to continue."""

    inputs: Annotated[str, Meta(description="The text.")]
    parameters: Annotated[Parameters | None, Meta(description="How to continue it.")] = None
    stream: Annotated[bool, Meta(description="At / only: send the text as it comes.")] = False


class PrefillToken(msgspec.Struct):
    """A token of the input; the first has no log-probability."""

    id: int
    text: str
    logprob: float | None


class Token(msgspec.Struct):
    """A token of the text; a special one is not part of `generated_text`."""

    id: int
    text: str
    logprob: float
    special: bool


class Sequence(msgspec.Struct, kw_only=True):
    """One of `best_of` that was not the best."""

    generated_text: str
    finish_reason: Finish
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: list[list[Token]] | UnsetType = UNSET


class Details(msgspec.Struct, kw_only=True):
    """How the text came to be."""

    finish_reason: Finish
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: list[list[Token]] | UnsetType = UNSET
    best_of_sequences: list[Sequence] | UnsetType = UNSET


class TextReply(msgspec.Struct):
    """The text."""

    generated_text: str
    details: Details | None = None


class StreamDetails(msgspec.Struct):
    """How the text ended."""

    finish_reason: Finish
    generated_tokens: int
    input_length: int
    seed: int | None


class StreamReply(msgspec.Struct, kw_only=True):
    """One token; with the last one, all of the text."""

    index: int
    token: Token
    generated_text: str | None = None
    details: StreamDetails | None = None
    top_tokens: list[Token] | UnsetType = UNSET


class AboutReply(msgspec.Struct, kw_only=True):
    """What is served, and its limits."""

    model_id: str
    model_dtype: str
    model_device_type: str
    model_pipeline_tag: str = "text-generation"
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int
    router: str = "shardwise"
    version: str
