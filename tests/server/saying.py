"""A fake engine that says what a test wants, and what a client makes of the answer: whole, or put together from a stream."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from shardwise.engine.text import Tokenizer
from tests.server.drive import Answer
from tests.server.engines import ServingFake

MOMENT_S = 0.0007
END = 6
"""The bundled model's end token."""


def says(engine: ServingFake, *choices: Sequence[int]) -> None:
    """From now on, choice n says `choices[n]` (the last one for all others), then ends.

    It takes a moment for some of the tokens, as a model does: else all would come at once, and a stream would be one frame.
    """

    def token(_prompt: Sequence[int], choice: int, place: int) -> int:
        if place % 3:
            time.sleep(MOMENT_S)
        ids = choices[min(choice, len(choices) - 1)]
        return ids[place] if place < len(ids) else END

    engine.answer = token


def says_texts(engine: ServingFake, tokenizer: Tokenizer, *texts: str) -> None:
    """As `says`, of texts."""
    says(engine, *(tokenizer.encode(text, add_special_tokens=False) for text in texts))


def chat_whole(answer: Answer) -> dict[int, dict[str, Any]]:
    """Each choice of an answer that came at once: what was said, thought and called, and how it ended."""
    assert answer.status == 200, answer.body
    found = {}
    for choice in answer.json["choices"]:
        message = choice["message"]
        assert message["role"] == "assistant" and message.get("tool_calls") != []
        found[choice["index"]] = {
            "content": message["content"] or "",
            "reasoning": message.get("reasoning"),
            "calls": [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])],
            "logprobs": choice["logprobs"] and choice["logprobs"]["content"],
            "ids": choice.get("token_ids"),
            "finish": choice["finish_reason"],
            "stop": choice["stop_reason"],
        }
    return found


def chat_streamed(answer: Answer) -> dict[int, dict[str, Any]]:
    """The same of a stream; what clients break on is checked on the way."""
    assert answer.status == 200, answer.body
    *chunks, done = answer.events
    assert done == "[DONE]"
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    found: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for new in chunk["choices"]:
            _add(found, new)
    for choice in found.values():
        choice["calls"] = [(call["name"], call["arguments"]) for call in choice["calls"]]
        assert choice["finish"] is not None, "a choice without an end"
    return found


def _add(found: dict[int, dict[str, Any]], new: dict[str, Any]) -> None:
    delta = new["delta"]
    if new["index"] not in found:
        assert delta["role"] == "assistant" and new["finish_reason"] is None
        empty: dict[str, Any] = {"content": "", "reasoning": None, "calls": [], "logprobs": None, "ids": None}
        found[new["index"]] = {**empty, "finish": None, "stop": None}
    else:
        assert "role" not in delta
    choice = found[new["index"]]
    assert choice["finish"] is None, "something came behind the end"
    choice["content"] += delta.get("content", "")
    if "reasoning" in delta:
        assert delta["reasoning"] == delta["reasoning_content"]
        choice["reasoning"] = (choice["reasoning"] or "") + delta["reasoning"]
    assert "tool_calls" not in delta or len(delta["tool_calls"]) == 1
    for call in delta.get("tool_calls", []):
        if "id" in call:
            assert call["index"] == len(choice["calls"]) and call["type"] == "function"
            choice["calls"].append({"name": call["function"]["name"], "arguments": ""})
        choice["calls"][call["index"]]["arguments"] += call["function"].get("arguments", "")
    for name, value in (("logprobs", new["logprobs"] and new["logprobs"]["content"]), ("ids", new.get("token_ids"))):
        if value is not None:
            choice[name] = (choice[name] or []) + value
    assert new["finish_reason"] != ""
    if new["finish_reason"] is not None:
        choice["finish"], choice["stop"] = new["finish_reason"], new["stop_reason"]


def text_whole(answer: Answer) -> dict[int, dict[str, Any]]:
    """Each choice of a completion that came at once."""
    assert answer.status == 200, answer.body
    return {choice.pop("index"): choice for choice in answer.json["choices"]}


def text_streamed(answer: Answer) -> dict[int, dict[str, Any]]:
    """The same of a stream."""
    assert answer.status == 200, answer.body
    *chunks, done = answer.events
    assert done == "[DONE]"
    found: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for new in chunk["choices"]:
            index = new.pop("index")
            if index not in found:
                found[index] = new
                continue
            whole = found[index]
            assert whole["finish_reason"] is None, "something came behind the end"
            whole["text"] += new["text"]
            for key, more in (new["logprobs"] or {}).items():
                whole["logprobs"][key] = more and whole["logprobs"][key] + more
            if "token_ids" in new:
                whole["token_ids"] += new["token_ids"]
            whole |= {key: new[key] for key in ("finish_reason", "stop_reason") if key in new}
    return found
