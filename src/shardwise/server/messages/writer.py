"""An answer becomes the blocks of a message, and the events that tell of them: streamed or whole, it is the same message."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import msgspec

from shardwise.server.answer.pieces import Piece
from shardwise.server.blocks import Block, Blocks, Change, Closed, Grew, Opened, mended, parsed
from shardwise.server.job import Usage
from shardwise.server.messages.output import (
    AssistantMessage,
    BlockDelta,
    BlockStart,
    BlockStop,
    Ending,
    InputGrowth,
    MessageDelta,
    MessageStart,
    MessageStop,
    MessageUsage,
    OutputBlock,
    Ping,
    SignatureGrowth,
    StopReason,
    StreamEvent,
    TextBlock,
    TextGrowth,
    ThinkingBlock,
    ThinkingGrowth,
    ToolUseBlock,
)

Emit = Callable[[StreamEvent], None]
NO_INPUT = msgspec.Raw(b"{}")
GROWTHS: dict[str, Callable[[str], TextGrowth | ThinkingGrowth | InputGrowth]] = {
    "text": TextGrowth,
    "thought": ThinkingGrowth,
    "call": InputGrowth,
}


class Writer:
    """Fills `message` with what comes of it. `emit` gets the events as they happen."""

    def __init__(self, message: AssistantMessage, emit: Emit | None = None) -> None:
        self.message = message
        self._emit = emit or _nobody
        self._blocks = Blocks()

    def begin(self) -> None:
        """The first events."""
        self._emit(MessageStart(self.message))
        self.ping()

    def ping(self) -> None:
        """While nothing else comes."""
        self._emit(Ping())

    def take(self, pieces: Sequence[Piece]) -> None:
        """What is new of the answer."""
        for change in self._blocks.take(pieces):
            self._change(change)

    def end(self, reason: StopReason, stop_sequence: str | None, usage: MessageUsage) -> None:
        """The answer is complete."""
        for change in self._blocks.finish():
            self._change(change)
        self.message.stop_reason, self.message.stop_sequence, self.message.usage = reason, stop_sequence, usage
        self._emit(MessageDelta(Ending(reason, stop_sequence), usage))
        self._emit(MessageStop())

    def _change(self, change: Change) -> None:
        match change:
            case Opened(block):
                empty = _empty(block)
                self.message.content.append(empty)
                self._emit(BlockStart(block.index, empty))
            case Grew(block, text):
                self._emit(BlockDelta(block.index, GROWTHS[block.kind](text)))
            case Closed(block):
                self._close(block)

    def _close(self, block: Block) -> None:
        made = self.message.content[block.index]
        match made:
            case TextBlock():
                made.text = block.text
            case ThinkingBlock():
                made.thinking = block.text
                self._emit(BlockDelta(block.index, SignatureGrowth("")))
            case ToolUseBlock():
                made.input = call_input(block.text)
        self._emit(BlockStop(block.index))


def _nobody(event: StreamEvent) -> None:
    """Takes the events of a message that is not streamed."""


def _empty(block: Block) -> OutputBlock:
    if block.call is not None:
        return ToolUseBlock(block.call.id, block.call.name, NO_INPUT)
    return TextBlock() if block.kind == "text" else ThinkingBlock()


def call_input(arguments: str) -> msgspec.Raw:
    """The arguments of a call as an object; {} where they are none, as when they were cut before they were whole."""
    try:
        text = json.dumps(parsed(arguments) or {}, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        return NO_INPUT
    return msgspec.Raw(mended(text).encode())


def used(usage: Usage) -> MessageUsage:
    """A job's tokens as a message tells them."""
    return MessageUsage(usage.prompt - usage.cached, usage.completion, usage.cached)
