"""Blocks of an answer, and both writers over them: however the text comes cut, events add up to the same, in order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.server.answer.choice import Tool
from shardwise.server.answer.pieces import Argued, Called, Piece, Said, Thought
from shardwise.server.answer.reader import reader
from shardwise.server.answer.style import THINK, Style
from shardwise.server.blocks import Blocks, Closed, Grew, Opened
from shardwise.server.messages import writer as messages
from shardwise.server.messages.output import AssistantMessage, MessageUsage
from shardwise.server.responses import writer as responses
from shardwise.server.responses.output import Response, frame
from tests.server.folds import fold_message, fold_response, without_ids
from tests.server.scripts import call_text

TEXT = st.text(st.sampled_from('ab \n<>{}"é😀tool_call/think'), max_size=12)
SEGMENTS = st.one_of(
    TEXT,
    st.just(call_text("f", '{"x": [1, "ü"], "input": "go"}')),
    st.just(call_text("f", '{"x": ')),  # broken off
    st.just(call_text("unknown", "{}")),
    st.just(call_text("g", "{}")),
)
ANSWERS = st.tuples(
    st.one_of(st.just(""), TEXT.map(lambda text: f"<think>{text}</think>")), st.lists(SEGMENTS, max_size=5)
).map(lambda parts: parts[0] + "".join(parts[1]))
ORIGINS = {"g": responses.Origin("patch", custom=True), "f": responses.Origin("f", namespace="space")}


def cut(text: str, places: Sequence[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


def read(parts: Sequence[str]) -> list[list[Piece]]:
    """What a reader makes of a text that comes in parts."""
    reading = reader(Style("hermes", THINK), (Tool("f"), Tool("g")), "auto", True)
    return [*(reading.feed(part) for part in parts if part), reading.finish()]


def as_response(pieces: Sequence[Sequence[Piece]], *, length: bool = False) -> tuple[Any, list[Any]]:
    told: list[Any] = []
    made = Response(id="resp_1", created_at=0, model="m")
    writing = responses.Writer(made, told.append, origins=ORIGINS, sealed=True)
    writing.begin()
    frames = [frame(event) for event in told]  # of a response that goes on to change; nothing else does
    told.clear()
    for each in pieces:
        writing.take(each)
    writing.end(cut=length, usage=None)
    frames += map(frame, told)
    events = [msgspec.json.decode(each.partition(b"data: ")[2]) for each in frames]
    names = [each.partition(b"\n")[0].decode() for each in frames]
    assert names == [f"event: {event['type']}" for event in events]
    return msgspec.to_builtins(made), events


def as_message(pieces: Sequence[Sequence[Piece]]) -> tuple[Any, list[Any]]:
    events: list[bytes] = []
    made = AssistantMessage(id="msg_1", model="m", usage=MessageUsage(1, 0))
    writing = messages.Writer(made, lambda event: events.append(msgspec.json.encode(event)))
    writing.begin()
    for each in pieces:
        writing.take(each)
    writing.end("end_turn", None, MessageUsage(1, 2))
    return msgspec.json.decode(msgspec.json.encode(made)), [msgspec.json.decode(each) for each in events]


@settings(deadline=None)
@given(ANSWERS, st.lists(st.integers(0, 200), max_size=8), st.booleans())
def test_a_response_is_the_same_however_its_text_came(text: str, places: list[int], length: bool):
    whole, _ = as_response(read([text]), length=length)
    made, events = as_response(read(cut(text, places)), length=length)
    assert fold_response(events) == made
    assert without_ids(made) == without_ids(whole)
    again = [msgspec.json.decode(each.partition(b"data: ")[2]) for each in responses.replay(msgspec.convert(made, Response))]
    assert fold_response(again) == made


@settings(deadline=None)
@given(ANSWERS, st.lists(st.integers(0, 200), max_size=8))
def test_a_message_is_the_same_however_its_text_came(text: str, places: list[int]):
    whole, _ = as_message(read([text]))
    made, events = as_message(read(cut(text, places)))
    assert fold_message(events) == made
    assert without_ids(made) == without_ids(whole)


@settings(deadline=None)
@given(ANSWERS)
def test_nothing_but_white_space_between_blocks_is_lost(text: str):
    pieces = [piece for several in read([text]) for piece in several]
    blocks = Blocks()
    changes = [*blocks.take(pieces), *blocks.finish()]
    said = "".join(piece.text for piece in pieces if isinstance(piece, Said))
    assert "".join("".join(b.text for b in blocks.all if b.kind == "text").split()) == "".join(said.split())
    thought = "".join(piece.text for piece in pieces if isinstance(piece, Thought))
    assert "".join(block.text for block in blocks.all if block.kind == "thought") == thought
    for index, block in enumerate(blocks.all):
        mine = [change for change in changes if change.block is block]
        assert block.index == index
        assert isinstance(mine[0], Opened) and isinstance(mine[-1], Closed)
        assert "".join(change.text for change in mine if isinstance(change, Grew)) == block.text
        assert block.kind != "text" or block.text.strip() or len(blocks.all) == 1


def test_white_space_alone_is_the_text_and_nothing_is_an_empty_one_where_one_is_wanted():
    blank, empty, none = Blocks(), Blocks(), Blocks()
    assert list(blank.take([Said("\n")])) == []
    assert [type(change) for change in blank.finish()] == [Opened, Grew, Closed]
    assert [type(change) for change in empty.finish(one=True)] == [Opened, Closed]
    assert list(none.finish()) == []


def test_a_custom_tool_gets_its_text_and_a_broken_one_all_that_was_written():
    def item(arguments: str) -> dict[str, Any]:
        made, _ = as_response([[Called(0, "call_1", "g"), Argued(0, arguments)]])
        return dict(made["output"][0])

    assert item('{"input": "*** Begin\\nä"}') | {"id": ""} == {
        "id": "", "type": "custom_tool_call", "call_id": "call_1", "name": "patch", "input": "*** Begin\nä",
        "status": "completed",
    }  # fmt: skip
    assert item('{"input": "*** Beg')["input"] == '{"input": "*** Beg'
    assert item('{"other": 1}')["input"] == '{"other": 1}'
    assert item('{"input": "\\ud83d\\ude00 \\ud83d."}')["input"] == "\U0001f600 \ufffd."


@pytest.mark.parametrize("arguments", ['{"a": "ü"}', f'{{"a": {10**60}}}', '{"a": [1.0, null, {}]}'])
def test_the_input_of_a_call_is_what_the_model_wrote(arguments: str):
    made, events = as_message([[Called(0, "call_1", "f"), Argued(0, arguments)]])
    assert made["content"][0]["input"] == json.loads(arguments) and fold_message(events) == made


@pytest.mark.parametrize("arguments", ["", "{", '{"a": NaN}', '{"a": 1e999}', "[1]", '{"a": ' + "[" * 100_000])
def test_what_is_no_object_is_an_empty_input(arguments: str):
    made, _ = as_message([[Called(0, "call_1", "f"), Argued(0, arguments)]])
    assert made["content"][0]["input"] == {}


def test_half_a_character_does_no_harm():
    made, _ = as_message([[Called(0, "call_1", "f"), Argued(0, '{"a": "\\ud83d"}')]])
    assert made["content"][0]["input"] == {"a": "\ufffd"}


def test_a_namespace_is_told_of_and_an_answer_that_was_cut_says_so():
    made, events = as_response([[Said("x"), Called(0, "call_1", "f"), Argued(0, '{"a')]], length=True)
    assert [item["status"] for item in made["output"]] == ["completed", "incomplete"]
    assert made["output"][1]["namespace"] == "space" and made["output"][1]["arguments"] == '{"a'
    assert made["status"] == "incomplete" and made["incomplete_details"] == {"reason": "max_output_tokens"}
    assert events[-1]["type"] == "response.incomplete"
