"""An answer becomes the items of a response, and the events that tell of them: the one place where both are made, so that a
streamed response and one that came whole are the same.
"""

from __future__ import annotations

import base64
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from shardwise.server.answer.pieces import Piece
from shardwise.server.blocks import Block, Blocks, Change, Closed, Grew, Opened, mended, parsed
from shardwise.server.frames import new_id, now
from shardwise.server.job import Usage
from shardwise.server.logprobs import TokenLogprob
from shardwise.server.responses.output import (
    ArgumentsDone,
    CallDelta,
    CustomCall,
    Failure,
    FunctionCall,
    Incomplete,
    InputDetails,
    InputDone,
    ItemEvent,
    ItemStatus,
    OutputDetails,
    OutputItem,
    OutputMessage,
    OutputText,
    PartEvent,
    ReasoningItem,
    ReasoningText,
    Response,
    ResponseEvent,
    ResponseUsage,
    StreamEvent,
    TextDelta,
    TextDone,
    ThoughtDelta,
    ThoughtDone,
    frame,
)

KEPT_THOUGHT = "plain:"
"""What `encrypted_content` begins with: the text of the reasoning in base64 follows. There is nothing to hide from whom it is
given to; the field is what stateless clients send back."""

Emit = Callable[[StreamEvent], None]


@dataclass(frozen=True, slots=True)
class Origin:
    """A tool under the name that the client gave it. `custom`: its input is text, not JSON."""

    name: str
    custom: bool = False
    namespace: str | None = None


class Writer:
    """Fills `response` with what comes of it. `emit` gets the events as they happen, in their order and numbered; what they
    tell of changes no more, but for the response in those of `begin`.

    `origins` are the tools by the names that the model knows. `sealed`: reasoning is also given as `encrypted_content`.
    """

    def __init__(
        self,
        response: Response,
        emit: Emit | None = None,
        *,
        origins: Mapping[str, Origin] | None = None,
        sealed: bool = False,
    ) -> None:
        self.response = response
        self._emit, self._origins, self._sealed = emit or _nobody, origins or {}, sealed
        self._blocks = Blocks()
        self._logprobs: list[TokenLogprob] = []
        self._number = 0

    def begin(self) -> None:
        """The first events."""
        self._whole("response.created")
        self._whole("response.in_progress")

    def take(self, pieces: Sequence[Piece], logprobs: Sequence[TokenLogprob] = ()) -> None:
        """What is new of the answer."""
        self._logprobs += logprobs
        for change in self._blocks.take(pieces):
            self._change(change, "completed")

    def end(self, *, cut: bool, usage: ResponseUsage | None) -> None:
        """The answer is complete, or `cut` at the limit of tokens."""
        for change in self._blocks.finish(one=True):
            self._change(change, "incomplete" if cut else "completed")
        self.response.usage = usage
        if cut:
            self.response.status, self.response.incomplete_details = "incomplete", Incomplete()
            self._whole("response.incomplete")
        else:
            self.response.status, self.response.completed_at = "completed", now()
            self._whole("response.completed")

    def fail(self, message: str) -> None:
        """The answer will not be complete, because of a fault here; one that is stays so."""
        if self.response.status != "in_progress":
            return
        self._close()
        self.response.status, self.response.error = "failed", Failure("server_error", message)
        self._whole("response.failed")

    def cancel(self) -> None:
        """The client ended it, if it has not ended. OpenAI's stream has no event of its own for that."""
        if self.response.status != "in_progress":
            return
        self._close()
        self.response.status = "cancelled"
        self._whole("response.incomplete")

    def _close(self) -> None:
        for change in self._blocks.finish():
            self._change(change, "incomplete")

    def _next(self) -> int:
        self._number += 1
        return self._number - 1

    def _whole(self, kind: str) -> None:
        self._emit(ResponseEvent(kind, self._next(), self.response))

    def repeat(self, item: OutputItem) -> None:
        """The events of an item that is complete, as if it came at once."""
        index = len(self.response.output)
        empty = copy.copy(item)
        empty.status = "in_progress"
        match item, empty:
            case OutputMessage(), OutputMessage():
                self._added(index, empty)
                self._delta(index, item, item.content[0].text, item.content[0].logprobs)
            case ReasoningItem(), ReasoningItem():
                empty.encrypted_content = None
                self._added(index, empty)
                self._delta(index, item, item.content[0].text, [])
            case FunctionCall(), FunctionCall():
                empty.arguments = ""
                self._added(index, empty)
                self._delta(index, item, item.arguments, [])
            case CustomCall(), CustomCall():
                empty.input = ""
                self._added(index, empty)
        self.response.output.append(item)
        self._done(index, item)

    def finished(self, response: Response) -> None:
        """The last event of a response that ended before."""
        last = {"completed": "response.completed", "failed": "response.failed"}
        self.response = response
        self._whole(last.get(response.status, "response.incomplete"))

    # --- blocks -------------------------------------------------------------------------------------------------------

    def _change(self, change: Change, status: ItemStatus) -> None:
        index = change.block.index
        match change:
            case Opened(block):
                item = self._item(block)
                self._added(index, item)
                self.response.output.append(item)
            case Grew(_, text):
                logprobs: list[TokenLogprob] = []
                item = self.response.output[index]
                if isinstance(item, OutputMessage):
                    logprobs, self._logprobs = self._logprobs, []
                    item.content[0].logprobs += logprobs
                self._delta(index, item, text, logprobs)
            case Closed(block):
                item = self.response.output[index]
                self._fill(item, block.text)
                item.status = status
                self._done(index, item)

    def _item(self, block: Block) -> OutputItem:
        if block.call is None:
            return OutputMessage(id=new_id("msg_")) if block.kind == "text" else ReasoningItem(id=new_id("rs_"))
        origin = self._origins.get(block.call.name, Origin(block.call.name))
        made = (CustomCall if origin.custom else FunctionCall)(
            id=new_id("ctc_" if origin.custom else "fc_"), call_id=block.call.id, name=origin.name
        )
        if origin.namespace is not None:
            made.namespace = origin.namespace
        return made

    def _fill(self, item: OutputItem, text: str) -> None:
        """Puts the whole text where it belongs."""
        match item:
            case OutputMessage():
                item.content[0].text = text
                item.content[0].logprobs += self._logprobs
                self._logprobs = []
            case ReasoningItem():
                item.content[0].text = text
                if self._sealed:
                    item.encrypted_content = KEPT_THOUGHT + base64.b64encode(text.encode()).decode()
            case FunctionCall():
                item.arguments = text
            case CustomCall():
                item.input = custom_input(text)

    # --- events of one item -------------------------------------------------------------------------------------------

    def _added(self, index: int, item: OutputItem) -> None:
        part: OutputText | ReasoningText | None = None
        told = copy.copy(item)
        if isinstance(item, OutputMessage):
            item.content, part = [OutputText()], OutputText()
        elif isinstance(item, ReasoningItem):
            item.content, part = [ReasoningText()], ReasoningText()
        if part is not None:
            told.content = []  # type: ignore[union-attr]  # it has one, by the lines above
        self._emit(ItemEvent("response.output_item.added", self._next(), index, told))
        if part is not None:
            self._emit(PartEvent("response.content_part.added", self._next(), item.id, index, 0, part))

    def _delta(self, index: int, item: OutputItem, text: str, logprobs: list[TokenLogprob]) -> None:
        match item:
            case OutputMessage():
                self._emit(TextDelta("response.output_text.delta", self._next(), item.id, index, 0, text, logprobs))
            case ReasoningItem():
                self._emit(ThoughtDelta("response.reasoning_text.delta", self._next(), item.id, index, 0, text))
            case FunctionCall():
                self._emit(CallDelta("response.function_call_arguments.delta", self._next(), item.id, index, text))
            case CustomCall():
                pass  # its input is known when the JSON around it is whole

    def _done(self, index: int, item: OutputItem) -> None:
        id = item.id
        match item:
            case OutputMessage():
                part = item.content[0]
                self._emit(TextDone("response.output_text.done", self._next(), id, index, 0, part.text, part.logprobs))
                self._emit(PartEvent("response.content_part.done", self._next(), id, index, 0, part))
            case ReasoningItem():
                thought = item.content[0]
                self._emit(ThoughtDone("response.reasoning_text.done", self._next(), id, index, 0, thought.text))
                self._emit(PartEvent("response.content_part.done", self._next(), id, index, 0, thought))
            case FunctionCall():
                kind = "response.function_call_arguments.done"
                self._emit(ArgumentsDone(kind, self._next(), id, index, item.name, item.arguments))
            case CustomCall():
                self._emit(CallDelta("response.custom_tool_call_input.delta", self._next(), id, index, item.input))
                self._emit(InputDone("response.custom_tool_call_input.done", self._next(), id, index, item.input))
        self._emit(ItemEvent("response.output_item.done", self._next(), index, item))


def replay(response: Response) -> list[bytes]:
    """The stream of a response that has ended, each text of it at once."""
    frames: list[bytes] = []
    begun = msgspec.structs.replace(
        response, status="in_progress", output=[], usage=None, completed_at=None, incomplete_details=None, error=None
    )
    writer = Writer(begun, lambda event: frames.append(frame(event)))
    writer.begin()
    for item in response.output:
        writer.repeat(item)
    writer.finished(response)
    return frames


def _nobody(event: StreamEvent) -> None:
    """Takes the events of a response that is not streamed."""


def custom_input(arguments: str) -> str:
    """What a custom tool is given, of the arguments that the model wrote; all that it wrote where they were cut short."""
    given = parsed(arguments)
    text = None if given is None else given.get("input")
    return mended(text) if isinstance(text, str) else arguments


def used(usage: Usage) -> ResponseUsage:
    """A job's tokens as a response tells them."""
    return ResponseUsage(
        usage.prompt,
        InputDetails(usage.cached, usage.prompt - usage.cached),
        usage.completion,
        OutputDetails(usage.reasoning or 0),
        usage.prompt + usage.completion,
    )
