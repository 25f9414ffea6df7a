"""Tools and choices in every spelling come to one value; what is wrong is refused with its place and what would work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.errors import RequestError
from shardwise.server.answer.choice import Named, Tool, callable_tools
from shardwise.server.answer.tools import Offer, anthropic_offer, chat_offer, functions_offer, responses_offer

SCHEMA = {"type": "object", "properties": {"place": {"type": "string"}}}
TOOLS = (Tool("weather", "The weather", SCHEMA, True), Tool("now"))
CHAT = [
    {"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": SCHEMA, "strict": True}},
    {"type": "function", "function": {"name": "now", "parameters": None}},
]
RESPONSES = [{"type": "function", **each["function"]} for each in CHAT]
FUNCTIONS = [each["function"] for each in CHAT]
ANTHROPIC = [
    {"name": "weather", "description": "The weather", "input_schema": SCHEMA, "strict": True},
    {"type": "custom", "name": "now", "input_schema": {"properties": {}}},
]


@pytest.mark.parametrize(
    ("offer", "tools"),
    [(chat_offer, CHAT), (responses_offer, RESPONSES), (functions_offer, FUNCTIONS), (anthropic_offer, ANTHROPIC)],
)
def test_all_spellings_of_tools_come_to_the_same(offer: Callable[..., Offer], tools: list[Any]):
    assert offer(tools).tools == TOOLS
    assert offer(tools).choice == "auto"
    assert offer(None) == Offer((), "none", offer is not functions_offer)
    assert offer([]).choice == "none"


WEATHER, NOW = Named("weather"), Named("now")
ALLOWED = {"mode": "required", "tools": [{"type": "function", "function": {"name": "now"}}]}
FLAT = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "now"}]}


@pytest.mark.parametrize(
    ("offer", "tools", "choice", "expected"),
    [
        (chat_offer, CHAT, "none", Offer(TOOLS, "none")),
        (chat_offer, CHAT, "required", Offer(TOOLS, "required")),
        (chat_offer, CHAT, {"type": "function", "function": {"name": "now"}}, Offer(TOOLS, NOW)),
        (chat_offer, CHAT, {"type": "allowed_tools", "allowed_tools": ALLOWED}, Offer(TOOLS[1:], "required")),
        (responses_offer, RESPONSES, {"type": "function", "name": "weather"}, Offer(TOOLS, WEATHER)),
        (responses_offer, RESPONSES, FLAT, Offer(TOOLS[1:], "auto")),
        (functions_offer, FUNCTIONS, {"name": "now"}, Offer(TOOLS, NOW, False)),
        (functions_offer, FUNCTIONS, "none", Offer(TOOLS, "none", False)),
        (anthropic_offer, ANTHROPIC, {"type": "auto"}, Offer(TOOLS, "auto")),
        (anthropic_offer, ANTHROPIC, {"type": "any", "disable_parallel_tool_use": True}, Offer(TOOLS, "required", False)),
        (anthropic_offer, ANTHROPIC, {"type": "tool", "name": "now"}, Offer(TOOLS, NOW)),
        (anthropic_offer, ANTHROPIC, {"type": "none"}, Offer(TOOLS, "none")),
    ],
)
def test_all_spellings_of_choices_are_taken(offer: Callable[..., Offer], tools: list[Any], choice: object, expected: Offer):
    assert offer(tools, choice) == expected


def test_what_may_be_called():
    assert callable_tools(TOOLS, "none") == ()
    assert callable_tools(TOOLS, "auto") == callable_tools(TOOLS, "required") == TOOLS
    assert callable_tools(TOOLS, NOW) == TOOLS[1:]
    assert chat_offer(CHAT, None, False).parallel is False


def function(**fields: object) -> list[dict[str, object]]:
    return [{"type": "function", "function": {"name": "f", **fields}}]


CYCLE: dict[str, Any] = {}
CYCLE["properties"] = CYCLE


@pytest.mark.parametrize(
    ("tools", "choice", "message"),
    [
        ("weather", None, r"tools is 'weather'; it takes a list of tools"),
        ([5], None, r"tools\[0\] is 5; it takes an object"),
        ([{"type": "web_search"}], None, r"tools\[0\]\.type is 'web_search'; .* only \"function\" works"),
        ([{"type": "function"}], None, r"tools\[0\]\.function is None"),
        (function(name=""), None, r"function\.name is ''; it takes 1 to 64 of the characters a-z"),
        (function(name="a.b"), None, r"function\.name is 'a\.b'"),
        (function(name="x" * 65), None, r"function\.name is 'x+'"),
        (function(name="é"), None, r"function\.name is 'é'"),
        (function(name="a\n"), None, r"function\.name is 'a\\n'"),
        (function(name=5), None, r"function\.name is 5"),
        (function() * 2, None, r"tools\[1\] has the name of tools\[0\], 'f'"),
        (function() * 129, None, r"tools has 129 tools; it takes at most 128"),
        (function(description=5), None, r"description must be a string"),
        (function(description="x" * 70000), None, r"description has 70000 characters; it takes at most 65536"),
        (function(strict="yes"), None, r"strict is 'yes'; it takes True or False"),
        (function(parameters=[]), None, r"parameters is \[\]; it takes an object"),
        (function(parameters={"type": "array"}), None, r"parameters\.type is 'array'; .* only \"object\" works"),
        (function(parameters={"properties": []}), None, r"parameters\.properties is \[\]"),
        (function(parameters={"x": float("nan")}), None, r"parameters is not JSON"),
        (function(parameters=CYCLE), None, r"parameters is not JSON"),
        (function(parameters={"x": "y" * 140000}), None, r"at most 131072"),
        (function(), "any", r"tool_choice is 'any'; it takes none, auto, required or \{\"type\""),
        (function(), 5, r"tool_choice is 5"),
        (None, "required", r"tool_choice asks for a call, but no tools are offered"),
        (function(), {"type": "tool"}, r"tool_choice\.type is 'tool'; it takes function, allowed_tools"),
        (function(), {"type": "function", "name": "f"}, r"tool_choice\.function is None"),
        (function(), {"type": "function", "function": {"name": "g"}}, r"is 'g', which is not among the tools; f is"),
        (None, {"type": "function", "function": {"name": "g"}}, r"no tools are offered: send `tools`"),
        (function(), {"type": "allowed_tools"}, r"tool_choice\.allowed_tools is None"),
        (function(), {"type": "allowed_tools", "allowed_tools": {"mode": "none"}}, r"mode is 'none'; it takes auto, required"),
    ],
)
def test_what_is_wrong_is_said(tools: object, choice: object, message: str):
    with pytest.raises(RequestError, match=message):
        chat_offer(tools, choice)


@pytest.mark.parametrize(
    ("tools", "choice", "message"),
    [
        ([{"type": "web_search_20250305", "name": "w"}], None, r"only \"custom\" works"),
        ([{"name": "x" * 129, "input_schema": {}}], None, r"1 to 128 of the characters"),
        (ANTHROPIC, "auto", r"tool_choice is 'auto'; it takes an object"),
        (ANTHROPIC, {}, r"tool_choice\.type is None; it takes auto, any, tool, none"),
        (ANTHROPIC, {"type": "tool", "name": "x"}, r"tool_choice\.name is 'x', which is not among the tools; weather, now are"),
        (ANTHROPIC, {"type": "any", "disable_parallel_tool_use": 1}, r"disable_parallel_tool_use is 1"),
    ],
)
def test_what_is_wrong_is_said_to_anthropic_s_clients(tools: object, choice: object, message: str):
    with pytest.raises(RequestError, match=message):
        anthropic_offer(tools, choice)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["function", "auto", "tool", "now", "object", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "function", "name", "parameters", "mode", "tools", "allowed_tools"]), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from([chat_offer, responses_offer, functions_offer, anthropic_offer]), JSON, JSON)
def test_nonsense_is_refused_and_breaks_nothing(offer: Callable[..., Offer], tools: object, choice: object):
    try:
        found = offer(tools, choice)
    except RequestError as error:
        assert 10 < len(str(error)) < 1000
    else:
        assert all(tool.name for tool in found.tools)
        assert found.choice in ("none", "auto", "required") or found.choice in [Named(tool.name) for tool in found.tools]
