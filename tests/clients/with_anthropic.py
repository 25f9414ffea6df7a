"""Anthropic's Python package: messages whole and streamed, tools, counted tokens, exceptions."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
from checks import KEY, MODEL, URL, check, raised, run

CLIENT = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0, timeout=120)
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
}
ASKED: Any = {
    "model": MODEL,
    "max_tokens": 12,
    "extra_body": {"temperature": 0},  # the package has no argument for it any more; the API still has
    "system": "You are brief.",
    "messages": [{"role": "user", "content": "What is your name?"}],
}


@check
def messages() -> None:
    answer = CLIENT.messages.create(**ASKED)
    assert answer.role == "assistant" and answer.content[0].type == "text" and answer.content[0].text
    assert answer.stop_reason in ("end_turn", "max_tokens") and 0 < answer.usage.output_tokens <= 12


@check
def stream_helper() -> None:
    whole = CLIENT.messages.create(**ASKED)
    with CLIENT.messages.stream(**ASKED) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
        final = stream.get_final_message()
    assert final.content[0].text == whole.content[0].text and final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    kinds = [event.type for event in CLIENT.messages.create(**ASKED, stream=True)]
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop" and "content_block_delta" in kinds


@check
async def async_four_at_once() -> None:
    async with anthropic.AsyncAnthropic(base_url=URL, api_key=KEY, max_retries=0, timeout=120) as client:
        answers = await asyncio.gather(*(client.messages.create(**ASKED) for _ in range(4)))
    assert len({answer.content[0].text for answer in answers}) == 1 and len({answer.id for answer in answers}) == 4


@check
def tools() -> None:
    tool = {"name": "weather", "description": "The weather.", "input_schema": SCHEMA}
    asked = {**ASKED, "max_tokens": 80, "tools": [tool], "tool_choice": {"type": "tool", "name": "weather"}}
    whole = CLIENT.messages.create(**asked)
    call = whole.content[-1]
    assert whole.stop_reason == "tool_use" and call.type == "tool_use" and call.input["city"] in ("Paris", "Oslo")
    with CLIENT.messages.stream(**asked) as stream:
        assert stream.get_final_message().content[-1].input == call.input
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "clear"}
    then = [*ASKED["messages"], {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
    assert CLIENT.messages.create(**{**ASKED, "tools": [tool], "messages": then}).content is not None


@check
def count_tokens() -> None:
    asked = {key: ASKED[key] for key in ("model", "system", "messages")}
    assert CLIENT.messages.count_tokens(**asked).input_tokens == CLIENT.messages.create(**ASKED).usage.input_tokens


@check
def exceptions() -> None:
    create = CLIENT.messages.create
    missing = raised(anthropic.NotFoundError, lambda: create(**{**ASKED, "model": "claude"}))
    assert missing.body["type"] == "error" and missing.body["error"]["type"] == "not_found_error"
    assert "max_tokens" in str(raised(anthropic.BadRequestError, lambda: create(**{**ASKED, "max_tokens": -1})))
    long = {**ASKED, "messages": [{"role": "user", "content": "word " * 5000}]}
    assert "prompt is too long" in str(raised(anthropic.BadRequestError, lambda: create(**long)))
    stranger = CLIENT.with_options(api_key="sk-wrong")
    told = raised(anthropic.AuthenticationError, lambda: stranger.messages.create(**ASKED))
    assert told.status_code == 401 and "sk-wrong" not in str(told) and told.request_id


if __name__ == "__main__":
    run()
