"""A message and its blocks as clients get them, and the events of its stream."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from shardwise.server.reply import sse

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class TextBlock(msgspec.Struct, tag="text"):
    """What the model said."""

    text: str = ""
    citations: list[Any] | None = None


class ThinkingBlock(msgspec.Struct, tag="thinking"):
    """What it thought. Nothing is signed here."""

    thinking: str = ""
    signature: str = ""


class ToolUseBlock(msgspec.Struct, tag="tool_use"):
    """A call of a tool; `input` is an object as the model wrote it, {} where the answer was cut before it was whole."""

    id: str
    name: str
    input: msgspec.Raw


OutputBlock = TextBlock | ThinkingBlock | ToolUseBlock


class MessageUsage(msgspec.Struct):
    """Tokens. `input_tokens` are those that were neither read from the prefix cache nor, as Anthropic counts, written to it on
    purpose; what was found in the cache is beside it, and both together are the input."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0


class AssistantMessage(msgspec.Struct, kw_only=True):
    """The assistant's next turn."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[OutputBlock] = []
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: MessageUsage


class TokensCount(msgspec.Struct):
    """How many tokens an input has, its system message and tools included."""

    input_tokens: int


# --- events -----------------------------------------------------------------------------------------------------------


class MessageStart(msgspec.Struct, tag="message_start"):
    """The message, without content yet."""

    message: AssistantMessage


class BlockStart(msgspec.Struct, tag="content_block_start"):
    """A block, without content yet."""

    index: int
    content_block: OutputBlock


class TextGrowth(msgspec.Struct, tag="text_delta"):
    """More text."""

    text: str


class ThinkingGrowth(msgspec.Struct, tag="thinking_delta"):
    """More of the reasoning."""

    thinking: str


class SignatureGrowth(msgspec.Struct, tag="signature_delta"):
    """Comes once, at the end of a reasoning."""

    signature: str


class InputGrowth(msgspec.Struct, tag="input_json_delta"):
    """More of a call's input, as JSON text."""

    partial_json: str


class BlockDelta(msgspec.Struct, tag="content_block_delta"):
    """More of a block."""

    index: int
    delta: TextGrowth | ThinkingGrowth | SignatureGrowth | InputGrowth


class BlockStop(msgspec.Struct, tag="content_block_stop"):
    """Nothing more comes of a block."""

    index: int


class Ending(msgspec.Struct):
    """Why the message ended."""

    stop_reason: StopReason | None
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, tag="message_delta"):
    """How the message ended, and what it took in all."""

    delta: Ending
    usage: MessageUsage


class MessageStop(msgspec.Struct, tag="message_stop"):
    """Nothing more comes."""


class Ping(msgspec.Struct, tag="ping"):
    """The connection is alive."""


StreamEvent = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop | Ping


def frame(event: StreamEvent) -> bytes:
    """As it goes over the wire."""
    return sse(event, str(event.__struct_config__.tag))
