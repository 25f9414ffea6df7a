"""What POST /v1/messages takes: the fields of Anthropic's Messages API, version 2023-06-01."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from shardwise.server.fields import ModelName
from shardwise.server.sampling import TopP

MOST_MESSAGES = 100_000  # as Anthropic
Blocks = list[dict[str, Any]]


class InputMessage(msgspec.Struct):
    """A turn of the conversation. Blocks are text, tool_use, tool_result, thinking and redacted_thinking."""

    role: Literal["user", "assistant", "system"]
    content: str | Blocks


class Thinking(msgspec.Struct):
    """Whether the model is to think first, where its chat template can tell it so; where the budget ends, so does the
    reasoning, if the marks around it are one token each; if not, `max_tokens` alone bounds it."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Annotated[int, Meta(ge=1024)] | None = None
    display: str | None = None


class OutputFormat(msgspec.Struct):
    """JSON that a schema allows."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct):
    """`effort` goes to the chat template."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class CountBody(msgspec.Struct, kw_only=True):
    """A message whose input is to be counted."""

    messages: Annotated[
        list[InputMessage],
        Meta(min_length=1, max_length=MOST_MESSAGES, description="Where the assistant's is the last, it is gone on with."),
    ]
    model: ModelName | None = None
    system: Annotated[str | Blocks | None, Meta(description="Text, or text blocks.")] = None
    tools: Annotated[list[dict[str, Any]] | None, Meta(description="With name, description and input_schema.")] = None
    tool_choice: Annotated[
        dict[str, Any] | None,
        Meta(description="Of type auto, any, tool or none; `disable_parallel_tool_use` keeps only the first call."),
    ] = None
    thinking: Annotated[
        Thinking | None, Meta(description="Whether to think before the answer, where the model's template knows.")
    ] = None
    output_config: Annotated[OutputConfig | None, Meta(description="How much effort, and the form of the text.")] = None
    mcp_servers: Annotated[list[Any] | None, Meta(description="Refused unless empty: this server calls no others.")] = None
    container: Annotated[Any, Meta(description="Refused: this server runs no code.")] = None


class MessagesBody(CountBody, kw_only=True):
    """A message to be made."""

    max_tokens: Annotated[
        int, Meta(ge=1, le=2**31 - 1, description="Reasoning included; where the context ends before, so does the answer.")
    ]
    stop_sequences: Annotated[list[str], Meta(max_length=16, description="Strings that end the answer.")] | None = None
    temperature: Annotated[float, Meta(ge=0, le=1, description="0 is greedy.")] | None = None
    top_p: TopP | None = None
    top_k: Annotated[int, Meta(ge=0, description="Draw from so many of the likeliest tokens; 0 is all.")] | None = None
    stream: Annotated[bool, Meta(description="Events as they happen.")] = False
    metadata: Annotated[dict[str, Any] | None, Meta(description="`user_id` and others; changes nothing.")] = None
    service_tier: Annotated[str, Meta(max_length=64, description="Changes nothing.")] | None = None
