"""What the endpoints of text and tokens take and give."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from shardwise.server.chat_body import Documents, Generation, GoesOn, Messages, Template, Tools, Variables
from shardwise.server.fields import ModelName


class TokenizeBody(msgspec.Struct, kw_only=True):
    """A text, as vLLM's `prompt` or llama.cpp's `content`, or a conversation."""

    messages: Messages | None = None
    model: ModelName | None = None
    tools: Tools | None = None
    add_generation_prompt: Generation | None = None
    continue_final_message: GoesOn = False
    documents: Documents | None = None
    chat_template: Template | None = None
    chat_template_kwargs: Variables | None = None
    prompt: Annotated[str, Meta(description="The text to tokenise.")] | None = None
    content: Annotated[str, Meta(description="llama.cpp's name for it, without special tokens.")] | None = None
    add_special_tokens: (
        Annotated[bool, Meta(description="Begin with the tokens that the model expects; usual for prompt only.")] | None
    ) = None
    add_special: Annotated[bool, Meta(description="llama.cpp's name of add_special_tokens.")] | None = None
    return_token_strs: Annotated[bool, Meta(description="Give each token's text, too.")] | None = None


class TokenizeReply(msgspec.Struct):
    """The ids; and what a request of this model may have at most."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeBody(msgspec.Struct, kw_only=True):
    """Token ids."""

    tokens: Annotated[list[int], Meta(description="The ids.")]
    model: ModelName | None = None


class DetokenizeReply(msgspec.Struct):
    """Their text, special tokens included, under vLLM's name and llama.cpp's."""

    prompt: str
    content: str


class TokenizerReply(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What evaluation tools need to know of the tokenizer."""

    tokenizer_class: str
    vocab_size: int
    model_max_length: int
    eos_token: str | None = None
    bos_token: str | None = None
    unk_token: str | None = None
    pad_token: str | None = None
    chat_template: str | None = None
    add_bos_token: bool | UnsetType = UNSET
    add_eos_token: bool | UnsetType = UNSET


class RenderReply(msgspec.Struct):
    """The prompt that a conversation makes."""

    prompt: str
    token_ids: list[int]
    model: str
