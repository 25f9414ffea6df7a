"""What the tests of readers share: a text cut in pieces becomes a message that can be compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from shardwise.server.answer.choice import Tool, ToolChoice
from shardwise.server.answer.pieces import Message, Piece
from shardwise.server.answer.reader import reader
from shardwise.server.answer.style import Style

WEATHER = Tool(
    "weather",
    "The weather of a place",
    {
        "type": "object",
        "properties": {"place": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}},
        "required": ["place"],
        "additionalProperties": False,
    },
)
NOW = Tool("get-now", parameters={"type": "object", "properties": {}, "additionalProperties": False})
TOOLS = (WEATHER, NOW)


class Told(NamedTuple):
    """A message without the ids of its calls, which are random."""

    reasoning: str | None
    content: str | None
    calls: list[tuple[str, str]]


def told(pieces: Iterable[Piece]) -> Told:
    message = Message()
    for piece in pieces:
        message.add(piece)
    return Told(message.reasoning, message.content, [(name, arguments) for _, name, arguments in message.calls])


def read(
    style: Style,
    *texts: str,
    tools: Sequence[Tool] = TOOLS,
    choice: ToolChoice = "auto",
    parallel: bool = True,
) -> Told:
    """The message of an answer that comes as `texts`."""
    reading = reader(style, tools, choice, parallel)
    pieces = [piece for text in texts for piece in reading.feed(text)]
    return told([*pieces, *reading.finish()])


def cut(text: str, places: Iterable[int]) -> list[str]:
    """`text` in pieces, cut at `places` as far as it has them."""
    at = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[start:end] for start, end in pairwise(at)]


def tool_fields(tool: Tool) -> dict[str, Any]:
    """The tool as a chat template is given it."""
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}
