"""The real clients, unmodified, where they are installed: what they parse and put together is what the server said."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.drive import Served
from tests.server.scripts import CALL, FUNCTION, WEATHER, Scripted


def test_openai(engine: Scripted, served: Served):
    openai: Any = pytest.importorskip("openai", reason="the openai client is not installed")
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        engine.say(CALL)
        assert client.responses.create().status == "completed"
        first = client.responses.create(input="Hi", tools=[FUNCTION])
        assert [item.type for item in first.output] == ["reasoning", "message", "function_call"]
        assert first.usage.input_tokens_details.cache_write_tokens == first.usage.input_tokens
        with client.responses.stream(input="Hi", tools=[FUNCTION], model="thinker") as stream:
            final = stream.get_final_response()
        assert final.output_text == first.output_text == "I look."
        assert final.output[2].parsed_arguments == {"city": "Zürich"}
        engine.say("Rain.")
        output = {"type": "function_call_output", "call_id": first.output[2].call_id, "output": "rain"}
        then = client.responses.create(previous_response_id=first.id, input=[output])
        assert then.output_text == "Rain." and client.responses.retrieve(then.id) == then
        assert len(list(client.responses.input_items.list(then.id, order="asc", limit=2))) == 5
        assert client.responses.input_tokens.count(input="Hi").input_tokens > 0
        client.responses.delete(then.id)
        with pytest.raises(openai.NotFoundError, match="is kept here"):
            client.responses.retrieve(then.id)


def test_anthropic(engine: Scripted, served: Served):
    anthropic: Any = pytest.importorskip("anthropic", reason="the anthropic client is not installed")
    asked: Any = {
        "model": "thinker",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": [{"name": "weather", "input_schema": WEATHER}],
    }
    with anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0) as client:
        engine.say(CALL)
        whole = client.messages.create(**asked)
        assert [block.type for block in whole.content] == ["thinking", "text", "tool_use"]
        with client.messages.stream(**asked) as stream:
            final = stream.get_final_message()
        assert final.stop_reason == whole.stop_reason == "tool_use" and final.usage == whole.usage
        assert final.content[2].input == whole.content[2].input == {"city": "Zürich"}
        counted = client.messages.count_tokens(model="thinker", messages=asked["messages"], tools=asked["tools"])
        assert counted.input_tokens == whole.usage.input_tokens
        with pytest.raises(anthropic.NotFoundError, match="served here: 'thinker'"):
            client.messages.create(**{**asked, "model": "claude"})
