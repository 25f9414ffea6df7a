"""`tools` and `tool_choice` as clients of OpenAI's and Anthropic's interfaces send them, checked: one value comes of all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardwise.errors import RequestError
from shardwise.sched.checks import check_text, flag, sequence, shown
from shardwise.server.answer.choice import Named, Tool, ToolChoice

MOST_TOOLS = 128  # as OpenAI
NAME_CHARS = 64  # as OpenAI
ANTHROPIC_NAME_CHARS = 128
DESCRIPTION_CHARS = 1 << 16
SCHEMA_CHARS = 1 << 17  # of one tool's parameters, as JSON
TOOLS_CHARS = 1 << 20  # of all of them
_NAME = re.compile(
    r"[a-zA-Z0-9_-]+"
)  # no dots: OpenAI and Anthropic refuse them, and some models' formats divide names by them


@dataclass(frozen=True)
class Offer:
    """What a request offers to call. `parallel`: more than one call may come."""

    tools: tuple[Tool, ...] = ()
    choice: ToolChoice = "none"
    parallel: bool = True


def chat_offer(tools: object, choice: object = None, parallel: object = None) -> Offer:
    """Chat completions: `{"type": "function", "function": {"name": ...}}`. None is a field that was not sent.

    Raises RequestError, as all of these do, with the place of what is wrong.
    """
    read = _read_tools(tools, "tools", lambda value, name: _typed_tool(value, name, nested=True), NAME_CHARS)
    return _openai_offer(read, choice, parallel, nested=True)


def responses_offer(tools: object, choice: object = None, parallel: object = None) -> Offer:
    """Responses: the function's fields lie beside its type."""
    read = _read_tools(tools, "tools", lambda value, name: _typed_tool(value, name, nested=False), NAME_CHARS)
    return _openai_offer(read, choice, parallel, nested=False)


def functions_offer(functions: object, choice: object = None) -> Offer:
    """The chat completions of old: `functions`, and `function_call` "none", "auto" or `{"name": ...}`; one call at most."""
    tools = _read_tools(functions, "functions", lambda value, name: (_object(value, name), name), NAME_CHARS)
    if isinstance(choice, Mapping):
        return Offer(tools, _named(choice.get("name"), tools, "function_call.name"), parallel=False)
    _one_of(choice, ("none", "auto"), "function_call", ' or {"name": "..."}')
    return Offer(tools, _plain(choice, tools), parallel=False)


def anthropic_offer(tools: object, choice: object = None) -> Offer:
    """Messages: `input_schema` for the parameters, and a choice of type auto, any, tool or none."""

    def fields(value: object, name: str) -> tuple[Mapping[str, Any], str]:
        tool = _object(value, name)
        if tool.get("type") not in (None, "custom"):
            raise RequestError(
                f'{name}.type is {shown(tool["type"])}; this server has no tools of its own, only "custom" works'
            )
        return {**tool, "parameters": tool.get("input_schema")}, name

    read = _read_tools(tools, "tools", fields, ANTHROPIC_NAME_CHARS)
    if choice is None:
        return Offer(read, _plain(None, read))
    asked = _object(choice, "tool_choice")
    parallel = not flag("tool_choice.disable_parallel_tool_use", asked.get("disable_parallel_tool_use", False))
    kind = asked.get("type")
    _one_of(kind, ("auto", "any", "tool", "none"), "tool_choice.type", needed=True)
    if kind == "tool":
        return Offer(read, _named(asked.get("name"), read, "tool_choice.name"), parallel)
    return Offer(read, _plain("required" if kind == "any" else kind, read), parallel)


# --- tools ------------------------------------------------------------------------------------------------------------

_Fields = Callable[[object, str], tuple[Mapping[str, Any], str]]


def _read_tools(value: object, name: str, fields: _Fields, name_chars: int) -> tuple[Tool, ...]:
    if value is None:
        return ()
    listed = [fields(each, f"{name}[{n}]") for n, each in enumerate(sequence(name, value, MOST_TOOLS, "tools"))]
    tools = tuple(_tool(each, place, name_chars) for each, place in listed)
    seen: dict[str, int] = {}
    for n, tool in enumerate(tools):
        if seen.setdefault(tool.name, n) != n:
            raise RequestError(
                f"{name}[{n}] has the name of {name}[{seen[tool.name]}], {tool.name!r}; each takes a name of its own"
            )
    if (chars := sum(len(json.dumps(tool.parameters)) for tool in tools)) > TOOLS_CHARS:
        raise RequestError(f"the parameters of {name} have {chars} characters of JSON; all together may have {TOOLS_CHARS}")
    return tools


def _typed_tool(value: object, name: str, *, nested: bool) -> tuple[Mapping[str, Any], str]:
    """The fields of a tool of type function, and where they lie."""
    tool = _object(value, name)
    if tool.get("type") != "function":
        raise RequestError(
            f'{name}.type is {shown(tool.get("type"))}; this server has no tools of its own, only "function" works'
        )
    return (_object(tool.get("function"), f"{name}.function"), f"{name}.function") if nested else (tool, name)


def _tool(fields: Mapping[str, Any], place: str, name_chars: int) -> Tool:
    name, description, strict = fields.get("name"), fields.get("description"), fields.get("strict")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > name_chars:
        raise RequestError(
            f"{place}.name is {shown(name)}; it takes 1 to {name_chars} of the characters a-z, A-Z, 0-9, _ and -"
        )
    if description is not None:
        check_text(description, f"{place}.description")
        if len(description) > DESCRIPTION_CHARS:
            raise RequestError(f"{place}.description has {len(description)} characters; it takes at most {DESCRIPTION_CHARS}")
    strict = False if strict is None else flag(f"{place}.strict", strict)
    return Tool(name, description or "", _parameters(fields.get("parameters"), f"{place}.parameters"), strict)


def _parameters(value: object, place: str) -> Mapping[str, Any]:
    """The schema of an object. One that does not say its type is given it: it could not be anything else."""
    if value is None:
        return {"type": "object", "properties": {}}
    schema = _object(value, place)
    if schema.get("type", "object") != "object":
        raise RequestError(f'{place}.type is {shown(schema["type"])}; arguments are named, so only "object" works')
    if not isinstance(schema.get("properties", {}), Mapping):
        raise RequestError(
            f"{place}.properties is {shown(schema['properties'])}; it takes an object with a schema for each name"
        )
    try:
        chars = len(json.dumps(schema, allow_nan=False))
    except (ValueError, TypeError, RecursionError):
        raise RequestError(f"{place} is not JSON; it takes a JSON schema without NaN, nested less than 1000 deep") from None
    if chars > SCHEMA_CHARS:
        raise RequestError(f"{place} has {chars} characters of JSON; it takes at most {SCHEMA_CHARS}")
    return {"type": "object", **schema}


def _object(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RequestError(f"{name} is {shown(value)}; it takes an object")
    return value


# --- the choice -------------------------------------------------------------------------------------------------------


def _openai_offer(tools: tuple[Tool, ...], choice: object, parallel: object, *, nested: bool) -> Offer:
    several = True if parallel is None else flag("parallel_tool_calls", parallel)
    if not isinstance(choice, Mapping):
        form = '{"type": "function", "function": {"name": "..."}}' if nested else '{"type": "function", "name": "..."}'
        _one_of(choice, ("none", "auto", "required"), "tool_choice", f" or {form}")
        return Offer(tools, _plain(choice, tools), several)
    kind = choice.get("type")
    _one_of(kind, ("function", "allowed_tools"), "tool_choice.type", needed=True)
    if kind == "function":
        name, place = _choice_name(choice, "tool_choice", nested)
        return Offer(tools, _named(name, tools, place), several)
    place = "tool_choice.allowed_tools" if nested else "tool_choice"
    allowed = _object(choice.get("allowed_tools"), place) if nested else choice
    mode = allowed.get("mode")
    _one_of(mode, ("auto", "required"), f"{place}.mode", needed=True)
    kept: list[str] = []
    for n, each in enumerate(sequence(f"{place}.tools", allowed.get("tools"), MOST_TOOLS, "tools")):
        name, where = _choice_name(_object(each, f"{place}.tools[{n}]"), f"{place}.tools[{n}]", nested)
        kept.append(_named(name, tools, where).name)
    return Offer(tools := tuple(tool for tool in tools if tool.name in kept), _plain(mode, tools), several)


def _choice_name(choice: Mapping[str, Any], place: str, nested: bool) -> tuple[object, str]:
    """The name in `{"type": "function", ...}`, and where it lies."""
    if not nested:
        return choice.get("name"), f"{place}.name"
    return _object(choice.get("function"), f"{place}.function").get("name"), f"{place}.function.name"


def _named(name: object, tools: Sequence[Tool], place: str) -> Named:
    names = [tool.name for tool in tools]
    if name not in names:
        raise RequestError(f"{place} is {shown(name)}, which is not among the tools; {_some(names)}")
    return Named(str(name))


def _some(names: Sequence[str]) -> str:
    if not names:
        return "no tools are offered: send `tools`"
    return f"{', '.join(names[:8])}{' and others' if len(names) > 8 else ''} {'are' if len(names) > 1 else 'is'}"


def _plain(choice: object, tools: Sequence[Tool]) -> ToolChoice:
    """The choice that a word means; without one, `auto` if there are tools."""
    if choice == "required":
        if not tools:
            raise RequestError("tool_choice asks for a call, but no tools are offered; send `tools`, or leave tool_choice out")
        return "required"
    return "auto" if tools and choice in (None, "auto") else "none"


def _one_of(value: object, words: tuple[str, ...], name: str, more: str = "", *, needed: bool = False) -> None:
    if value is None and not needed:
        return
    if not isinstance(value, str) or value not in words:
        raise RequestError(f"{name} is {shown(value)}; it takes {', '.join(words)}{more}")
