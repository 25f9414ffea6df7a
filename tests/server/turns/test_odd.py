"""Bodies with something odd anywhere in them: an answer or a refusal, never a failure of the server."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.drive import Served
from tests.server.scripts import CALL, FUNCTION, WEATHER, Scripted

RESPONSE: dict[str, Any] = {
    "model": "thinker",
    "input": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {
            "type": "reasoning",
            "id": "rs",
            "summary": [{"type": "summary_text", "text": "Hm"}],
            "encrypted_content": "plain:SG0=",
        },
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"type": "function_call", "call_id": "c", "name": "weather", "arguments": '{"city": "Bern"}'},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "rain"}]},
        {"type": "custom_tool_call", "call_id": "d", "name": "patch", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "d", "output": "x"},
    ],
    "instructions": "Brief.",
    "tools": [
        FUNCTION,
        {
            "type": "custom",
            "name": "patch",
            "description": "",
            "format": {"type": "grammar", "syntax": "lark", "definition": "x"},
        },
        {"type": "namespace", "name": "files", "description": "", "tools": [{**FUNCTION, "name": "read"}]},
        {"type": "web_search", "filters": {}},
    ],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]},
    "reasoning": {"effort": "low", "summary": "auto"},
    "text": {"format": {"type": "text"}, "verbosity": "low"},
    "include": ["message.output_text.logprobs", "reasoning.encrypted_content"],
    "metadata": {"a": "b"},
    "top_logprobs": 1,
    "max_output_tokens": 50,
    "stop": ["never"],
    "chat_template_kwargs": {"enable_thinking": True},
    "stream": False,
    "store": True,
}
MESSAGE: dict[str, Any] = {
    "model": "thinker",
    "max_tokens": 50,
    "system": [{"type": "text", "text": "Brief."}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm", "signature": ""},
                {"type": "tool_use", "id": "t", "name": "weather", "input": {"city": "Bern"}},
            ],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "."}]}],
        },
    ],
    "tools": [{"name": "weather", "input_schema": WEATHER}],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": False},
    "thinking": {"type": "enabled", "budget_tokens": 2000},
    "output_config": {"effort": "low"},
    "stop_sequences": ["never"],
    "metadata": {"user_id": "me"},
    "stream": False,
}
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.sampled_from([[], {}, [None], [[]], [{}], {"type": None}, {"type": "x"}, "", "auto", "none", "\x00", 10**400, -1, 0]),
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in pairs:
        yield from places(each, (*path, key))


def changed(body: Any, path: tuple[Any, ...], odd: Any, *, gone: bool) -> Any:
    body = copy.deepcopy(body)
    holder = body
    for key in path[:-1]:
        holder = holder[key]
    if gone:
        del holder[path[-1]]
    else:
        holder[path[-1]] = odd
    return body


@pytest.mark.parametrize(("path", "body"), [("/v1/responses", RESPONSE), ("/v1/messages", MESSAGE)])
def test_the_body_as_it_is_works(engine: Scripted, served: Served, path: str, body: dict[str, Any]):
    engine.say(CALL)
    assert served.post(path, body).status == 200
    assert served.post(f"{path}/{'input_tokens' if path.endswith('responses') else 'count_tokens'}", body).status == 200


@pytest.mark.parametrize(("path", "body"), [("/v1/responses", RESPONSE), ("/v1/messages", MESSAGE)])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_something_odd_is_refused_or_does_no_harm(
    data: st.DataObject, engine: Scripted, served: Served, path: str, body: dict[str, Any]
):
    engine.say(CALL)
    place = data.draw(st.sampled_from(sorted(places(body), key=str)))
    asked = changed(body, place, data.draw(ODD), gone=data.draw(st.booleans()))
    try:
        text = json.dumps(asked)
    except ValueError:  # a whole number of more digits than Python prints
        return
    answer = served.ask("POST", path, text.encode(), {"content-type": "application/json"})
    assert answer.status in (200, 400, 404), (place, answer.status, answer.body)
    if answer.status != 200:
        message = answer.json["error"]["message"]
        assert message and "Traceback" not in message and "object at 0x" not in message
