"""What POST /v1/responses takes: OpenAI's fields (OpenAPI 2.3.0), and the sampling fields that vLLM adds to them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from shardwise.server.fields import Effort, ModelName, Priority, Salt
from shardwise.server.sampling import DrawBody

MOST_ITEMS = 10_000
MOST_PAIRS, MOST_KEY, MOST_VALUE = 16, 64, 512

Many = Annotated[list[dict[str, Any]], Meta(max_length=MOST_ITEMS)]
Name = Annotated[str, Meta(max_length=512)]
Key = Annotated[str, Meta(max_length=MOST_KEY)]
Value = Annotated[str, Meta(max_length=MOST_VALUE)]


class TextFormat(msgspec.Struct):
    """How the text of the answer is to be: free, any JSON object, or JSON that a schema allows."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Annotated[str | None, Meta(description="Of the schema; says nothing to the model.")] = None
    description: str | None = None
    schema: dict[str, Any] | UnsetType = UNSET
    strict: bool | None = None


class TextConfig(msgspec.Struct):
    """The text of the answer. `verbosity` is taken and changes nothing."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(msgspec.Struct):
    """`effort` goes to the chat template ("none" switches thinking off). `summary` changes nothing: reasoning comes whole."""

    effort: Effort | None = None
    summary: str | None = None


class ResponsesBody(DrawBody, kw_only=True):
    """A response to be made."""

    model: ModelName | None = None
    input: Annotated[
        str | Many | None,
        Meta(
            description="A user's text, or items: messages, function_call, function_call_output, custom_tool_call, "
            "custom_tool_call_output, reasoning, item_reference. May be left out."
        ),
    ] = None
    instructions: Annotated[str | None, Meta(description="A system message before all else; not kept for the next one.")] = None
    max_output_tokens: (
        Annotated[int, Meta(ge=1, description="Reasoning included; by default to the end of the context.")] | None
    ) = None
    top_logprobs: (
        Annotated[int, Meta(ge=0, le=20, description="How many of the likeliest tokens `include` adds to each.")] | None
    ) = None
    include: Annotated[
        list[str] | None,
        Meta(description="`message.output_text.logprobs` and `reasoning.encrypted_content`; others change nothing."),
    ] = None
    text: Annotated[TextConfig | None, Meta(description="The form of the text.")] = None
    tools: Annotated[
        Many | None,
        Meta(
            description="`function` and `custom` tools, and `namespace`s of them. Tools that OpenAI's own servers run are left "
            "out, and named in the X-Ignored-Tools header of the answer."
        ),
    ] = None
    tool_choice: Annotated[
        str | dict[str, Any] | None,
        Meta(description='"auto", "none", "required", {"type": "function", "name": ...} or allowed_tools.'),
    ] = None
    parallel_tool_calls: Annotated[bool | None, Meta(description="false keeps only the first call.")] = None
    reasoning: Annotated[Reasoning | None, Meta(description="How much to think, where the model's template knows.")] = None
    metadata: Annotated[dict[Key, Value], Meta(max_length=MOST_PAIRS, description="Given back.")] | None = None
    truncation: Annotated[
        Literal["auto", "disabled"] | None,
        Meta(description="Nothing is ever cut off: too long an input is refused either way."),
    ] = None
    store: Annotated[bool | None, Meta(description="Keep it for GET and previous_response_id; true by default.")] = None
    previous_response_id: Annotated[Name | None, Meta(description="The kept response that this one goes on from.")] = None
    stream: Annotated[bool | None, Meta(description="Events as they happen.")] = None
    stream_options: Annotated[
        dict[str, Any] | None, Meta(description="Changes nothing: the last event always tells the usage.")
    ] = None
    background: Annotated[bool | None, Meta(description="Run without the client, who asks by GET and may cancel.")] = None
    max_tool_calls: Annotated[int, Meta(ge=0, description="Of tools that the server runs: there are none.")] | None = None
    user: Annotated[Name | None, Meta(description="Given back.")] = None
    prompt_cache_key: Annotated[Name | None, Meta(description="Given back.")] = None
    safety_identifier: Annotated[Name | None, Meta(description="Given back.")] = None
    service_tier: Annotated[Name | None, Meta(description="Changes nothing.")] = None
    conversation: Annotated[Any, Meta(description="Refused: there are no conversation objects; use previous_response_id.")] = (
        None
    )
    prompt: Annotated[Any, Meta(description="Refused: there are no stored prompts.")] = None
    priority: Priority = 0
    cache_salt: Salt | None = None
    chat_template_kwargs: Annotated[dict[str, Any] | None, Meta(description="Scalars for the chat template.")] = None
