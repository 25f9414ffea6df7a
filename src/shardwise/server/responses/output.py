"""A response and its items as clients get them, and the events of its stream."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from shardwise.server.logprobs import TokenLogprob
from shardwise.server.portions import encoded, is_large
from shardwise.server.reply import sse

Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(msgspec.Struct, tag="output_text", kw_only=True):
    """Text of a message. `logprobs` are of all tokens since the text before, marks and the end token among them."""

    text: str = ""
    annotations: list[Any] = []
    logprobs: list[TokenLogprob] = []


class ReasoningText(msgspec.Struct, tag="reasoning_text"):
    """What the model thought."""

    text: str = ""


class OutputMessage(msgspec.Struct, tag="message", kw_only=True):
    """What the model said."""

    id: str
    status: ItemStatus = "in_progress"
    role: Literal["assistant"] = "assistant"
    content: list[OutputText] = []


class ReasoningItem(msgspec.Struct, tag="reasoning", kw_only=True):
    """What it thought. `encrypted_content`, if it was asked for, is the same in a form that clients give back."""

    id: str
    status: ItemStatus = "in_progress"
    summary: list[Any] = []
    content: list[ReasoningText] = []
    encrypted_content: str | None = None


class FunctionCall(msgspec.Struct, tag="function_call", kw_only=True):
    """A call of a function; `arguments` is JSON text."""

    id: str
    call_id: str
    name: str
    arguments: str = ""
    status: ItemStatus = "in_progress"
    namespace: str | msgspec.UnsetType = msgspec.UNSET


class CustomCall(msgspec.Struct, tag="custom_tool_call", kw_only=True):
    """A call of a custom tool, whose input is text."""

    id: str
    call_id: str
    name: str
    input: str = ""
    status: ItemStatus = "in_progress"
    namespace: str | msgspec.UnsetType = msgspec.UNSET


OutputItem = OutputMessage | ReasoningItem | FunctionCall | CustomCall


class InputDetails(msgspec.Struct):
    """Of the input: found in the prefix cache, and written to it (all that was not found)."""

    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(msgspec.Struct):
    """Of the output: the reasoning, by its text's tokens."""

    reasoning_tokens: int


class ResponseUsage(msgspec.Struct):
    """Tokens."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Failure(msgspec.Struct):
    """Why a response failed."""

    code: str
    message: str


class Incomplete(msgspec.Struct):
    """Why a response ended early."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class Response(msgspec.Struct, kw_only=True):
    """A response: what was asked for, as it was applied, and what came of it."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Status = "in_progress"
    background: bool = False
    error: Failure | None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    metadata: dict[str, str] = {}
    model: str
    output: list[OutputItem] = []
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    prompt_cache_key: str | None = None
    reasoning: dict[str, Any] = {}
    safety_identifier: str | None = None
    service_tier: str = "default"
    store: bool = True
    temperature: float = 1.0
    text: dict[str, Any] = {}
    tool_choice: Any = "auto"
    tools: list[dict[str, Any]] = []
    top_logprobs: int = 0
    top_p: float = 1.0
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None


class Deleted(msgspec.Struct):
    """A response is kept no longer."""

    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


class InputItems(msgspec.Struct):
    """The items that a response was made from, a page of them."""

    data: list[dict[str, Any]]
    first_id: str
    last_id: str
    has_more: bool
    object: Literal["list"] = "list"


class Counted(msgspec.Struct):
    """How many tokens an input has."""

    input_tokens: int
    object: Literal["response.input_tokens"] = "response.input_tokens"


# --- events -----------------------------------------------------------------------------------------------------------


class ResponseEvent(msgspec.Struct):
    """The response as a whole: response.created, in_progress, completed, incomplete, failed."""

    type: str
    sequence_number: int
    response: Response


class ItemEvent(msgspec.Struct):
    """response.output_item.added and done."""

    type: str
    sequence_number: int
    output_index: int
    item: OutputItem


class PartEvent(msgspec.Struct):
    """response.content_part.added and done."""

    type: str
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    part: OutputText | ReasoningText


class TextDelta(msgspec.Struct):
    """response.output_text.delta."""

    type: str
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: list[TokenLogprob]


class TextDone(msgspec.Struct):
    """response.output_text.done."""

    type: str
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    text: str
    logprobs: list[TokenLogprob]


class ThoughtDelta(msgspec.Struct):
    """response.reasoning_text.delta."""

    type: str
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    delta: str


class ThoughtDone(msgspec.Struct):
    """response.reasoning_text.done."""

    type: str
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    text: str


class CallDelta(msgspec.Struct):
    """response.function_call_arguments.delta, response.custom_tool_call_input.delta."""

    type: str
    sequence_number: int
    item_id: str
    output_index: int
    delta: str


class ArgumentsDone(msgspec.Struct):
    """response.function_call_arguments.done."""

    type: str
    sequence_number: int
    item_id: str
    output_index: int
    name: str
    arguments: str


class InputDone(msgspec.Struct):
    """response.custom_tool_call_input.done."""

    type: str
    sequence_number: int
    item_id: str
    output_index: int
    input: str


StreamEvent = (
    ResponseEvent
    | ItemEvent
    | PartEvent
    | TextDelta
    | TextDone
    | ThoughtDelta
    | ThoughtDone
    | CallDelta
    | ArgumentsDone
    | InputDone
)


def is_long(event: StreamEvent) -> bool:
    """Whether it takes long to make a frame of it. What is new never does; what repeats a whole text may."""
    return not isinstance(event, TextDelta | ThoughtDelta | CallDelta) and is_large(event)


def frame(event: StreamEvent) -> bytes:
    """As it goes over the wire."""
    return sse(encoded(event) if is_long(event) else event, event.type)
