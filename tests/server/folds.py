"""The streams of responses and messages read as a careful client reads them: every event in its place, or AssertionError."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

ENDS = ("response.completed", "response.incomplete", "response.failed")
DELTAS = {
    "message": "response.output_text",
    "reasoning": "response.reasoning_text",
    "function_call": "response.function_call_arguments",
    "custom_tool_call": "response.custom_tool_call_input",
}
WHOLE = {"message": "text", "reasoning": "text", "function_call": "arguments", "custom_tool_call": "input"}


def fold_response(events: Sequence[Any]) -> dict[str, Any]:
    """The response that the events of a stream add up to; checks that the last of them says the same."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1]["type"] in ENDS and not any(event["type"] in ENDS for event in events[:-1])
    for event in events[:2]:
        assert event["response"]["status"] == "in_progress" and event["response"]["output"] == []
    output: list[dict[str, Any]] = []
    rest = list(events[2:-1])
    while rest:
        output.append(_item(rest, len(output)))
    last: dict[str, Any] = events[-1]["response"]
    assert output == last["output"]
    assert last["id"] == events[0]["response"]["id"]
    return last


def _item(rest: list[Any], index: int) -> dict[str, Any]:
    """Takes the events of one item."""
    added = rest.pop(0)
    assert added["type"] == "response.output_item.added" and added["output_index"] == index
    item = copy.deepcopy(added["item"])
    kind = item["type"]
    assert item["status"] == "in_progress" and not item.get("content") and not item.get(WHOLE[kind])
    of_parts = kind in ("message", "reasoning")
    if of_parts:
        part = rest.pop(0)
        assert part["type"] == "response.content_part.added" and part["part"]["text"] == ""
        _at(part, item["id"], index, parts=True)
    text, logprobs = "", []
    while rest[0]["type"] == f"{DELTAS[kind]}.delta":
        event = rest.pop(0)
        _at(event, item["id"], index, parts=of_parts)
        text += event["delta"]
        logprobs += event.get("logprobs", [])
    done = rest.pop(0)
    assert done["type"] == f"{DELTAS[kind]}.done" and done[WHOLE[kind]] == text
    if of_parts:
        part = rest.pop(0)
        assert part["type"] == "response.content_part.done" and part["part"]["text"] == text
        assert part["part"].get("logprobs", [])[: len(logprobs)] == logprobs
        item["content"] = [part["part"]]
    else:
        item[WHOLE[kind]] = text
    ended = rest.pop(0)
    assert ended["type"] == "response.output_item.done" and ended["output_index"] == index
    item["status"] = ended["item"]["status"]
    assert item["status"] in ("completed", "incomplete")
    item |= {key: value for key, value in ended["item"].items() if key == "encrypted_content"}
    assert item == ended["item"]
    return item


def _at(event: dict[str, Any], id: str, index: int, *, parts: bool) -> None:
    assert event["item_id"] == id and event["output_index"] == index
    assert event.get("content_index") == (0 if parts else None)


def fold_message(events: Sequence[Any]) -> dict[str, Any]:
    """The message that the events of a stream add up to."""
    events = [event for event in events if event["type"] != "ping"]
    assert events[0]["type"] == "message_start"
    message: dict[str, Any] = copy.deepcopy(events[0]["message"])
    assert message["content"] == [] and message["stop_reason"] is None
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    rest = list(events[1:-2])
    while rest:
        message["content"].append(_block(rest, len(message["content"])))
    message |= events[-2]["delta"]
    message["usage"] = events[-2]["usage"]
    return message


def _block(rest: list[Any], index: int) -> dict[str, Any]:
    """Takes the events of one block."""
    start = rest.pop(0)
    assert start["type"] == "content_block_start" and start["index"] == index
    block = copy.deepcopy(start["content_block"])
    key = {"text": "text", "thinking": "thinking", "tool_use": "input"}[block["type"]]
    assert not block[key]
    text = ""
    while rest[0]["type"] == "content_block_delta" and rest[0]["delta"]["type"] != "signature_delta":
        event = rest.pop(0)
        assert event["index"] == index
        kind = {"text": "text_delta", "thinking": "thinking_delta", "tool_use": "input_json_delta"}[block["type"]]
        assert event["delta"]["type"] == kind
        text += event["delta"]["partial_json" if key == "input" else key]
    if block["type"] == "thinking":
        assert rest.pop(0)["delta"] == {"type": "signature_delta", "signature": ""}
    assert rest.pop(0) == {"type": "content_block_stop", "index": index}
    block[key] = _object(text) if key == "input" else text
    return block


def _object(text: str) -> dict[str, Any]:
    """The input of a call as clients read it; {} where the stream was cut within it."""
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError:
        return {}
    return found


def without_ids(value: Any) -> Any:
    """The same without what differs each time: ids and times."""
    if isinstance(value, dict):
        names = ("id", "call_id", "created_at", "completed_at", "item_id", "previous_response_id")
        return {key: without_ids(each) for key, each in value.items() if key not in names}
    return [without_ids(each) for each in value] if isinstance(value, list) else value
