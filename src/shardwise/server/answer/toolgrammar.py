"""Grammars that force calls, in the way the model writes them: text in the dialect of Lark that llguidance reads.

For `required` and a named tool. With `auto` nothing is forced, for `strict` tools neither: the model may also just talk.
Arguments hold to the tool's schema as far as llguidance does; see `_bare_value` for the one format where they may not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from shardwise.engine.formats import bound_formats
from shardwise.server.answer.choice import Tool, ToolChoice, callable_tools
from shardwise.server.answer.jsoncalls import DEEPSEEK, KIMI, Marks
from shardwise.server.answer.schema import TYPES, resolved, types_of
from shardwise.server.answer.style import Style
from shardwise.server.answer.thinking import Budget, Mark, analysis, before, literal, marked

MOST_CALLS = 32  # in one answer


def tool_grammar(
    style: Style,
    tools: Sequence[Tool],
    choice: ToolChoice,
    parallel: bool,
    specials: Mapping[str, int],
    budget: Budget | None = None,
) -> str:
    """The grammar for a request whose `choice` is `required` or named.

    `specials`: the id of each special token of the tokenizer by its text; marks among them are written as tokens, all others as
    characters. llguidance refuses schemas that it cannot keep, when the grammar is compiled. `budget` bounds the reasoning.
    """
    offered = callable_tools(tools, choice)
    assert offered and choice != "auto", f"no call is forced by {choice!r} with {len(offered)} tools"

    mark = marked(specials)
    rules = ["start: opening calls", before(style, mark, budget)] if style.think else ["start: calls"]
    most = MOST_CALLS if parallel else 1
    match style.calls:
        case "harmony":
            rules = _harmony(offered, mark, budget)
        case "hermes":
            rules += _repeated(f'{mark("<tool_call>")} "\\n" object "\\n" {mark("</tool_call>")}', "\n", most)
            rules += _objects(offered, "arguments")
        case "coder":
            rules += _repeated(f'{mark("<tool_call>")} "\\n" function "\\n" {mark("</tool_call>")}', "\n", most)
            rules += _functions(offered)
        case "llama3":
            rules += [*_repeated("object", "; ", most), *_objects(offered, "parameters")]
        case "mistral":
            rules += _repeated("object", ", ", most, f'{mark("[TOOL_CALLS]")} "["', '"]"')
            rules += _objects(offered, "arguments")
        case "pythonic":
            rules += [*_repeated("function", ", ", most, '"["', '"]"'), *_python(offered)]
        case "deepseek":
            rules += _marked(offered, DEEPSEEK, most, mark)
        case "kimi":
            rules += _marked(offered, KIMI, most, mark)
        case "plain":
            rules += [*_repeated("object", ", ", most, '"["', '"]"'), *_objects(offered, "parameters")]
    return "\n".join(rules) + "\n"


# --- parts ------------------------------------------------------------------------------------------------------------


def _json(schema: Mapping[str, Any]) -> str:
    """A rule's body that is JSON of the schema, with the white space that chat templates write and no other."""
    spaced = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return f"%json {json.dumps({**bound_formats(schema), 'x-guidance': spaced}, ensure_ascii=False)}"


def _repeated(call: str, between: str, most: int, before: str = "", after: str = "") -> list[str]:
    more = f"({literal(between)} call){{0,{most - 1}}}" if most > 1 else ""
    return [f"calls: {before} call {more} {after}", f"call: {call}"]


def _parameters(tool: Tool) -> dict[str, Any]:
    return {"type": "object", **tool.parameters}


def _each(rule: str, tools: Sequence[Tool]) -> str:
    """`rule` is that of one of the tools."""
    return f"{rule}: " + " | ".join(f"{rule}_{n}" for n in range(len(tools)))


def _objects(tools: Sequence[Tool], key: str) -> list[str]:
    """Rules for an object with a name and arguments, which are called `key`."""
    rules = [_each("object", tools)]
    for n, tool in enumerate(tools):
        head = f'{{"name": "{tool.name}", "{key}": '
        rules += [f'object_{n}: {literal(head)} arguments_{n} "}}"', f"arguments_{n}: {_json(_parameters(tool))}"]
    return rules


# --- formats that name the tool before its arguments ------------------------------------------------------------------


def _marked(tools: Sequence[Tool], marks: Marks, most: int, mark: Mark) -> list[str]:
    kimi = marks is KIMI
    rules = [f"calls: {mark(marks.section)} call" + (f"{{1,{most}}}" if most > 1 else "") + f" {mark(marks.close)}"]
    rules.append(_each("call", tools))
    for n, tool in enumerate(tools):
        name = f"{literal(f'functions.{tool.name}:')} /[0-9]{{1,2}}/" if kimi else literal(tool.name)
        rules.append(f"call_{n}: {mark(marks.begin)} {name} {mark(marks.separator)} arguments_{n} {mark(marks.end)}")
        rules.append(f"arguments_{n}: {_json(_parameters(tool))}")
    return rules


def _harmony(tools: Sequence[Tool], mark: Mark, budget: Budget | None) -> list[str]:
    """One call: a message of a call ends the answer. Reasoning may come first."""
    rules = ["start: (analysis begin)? call", *analysis(mark, budget), _each("call", tools)]
    for n, tool in enumerate(tools):
        head = f'{mark("<|channel|>")} {literal(f"commentary to=functions.{tool.name} ")} {mark("<|constrain|>")} "json"'
        rules.append(f"call_{n}: {head} {mark('<|message|>')} arguments_{n} {mark('<|call|>')}")
        rules.append(f"arguments_{n}: {_json(_parameters(tool))}")
    return rules


# --- arguments that are not JSON --------------------------------------------------------------------------------------


def _listed(tool: Tool) -> list[tuple[str, Any, bool]]:
    """(name, schema, whether it has to be there) of each parameter, in the schema's order."""
    properties, required = tool.parameters.get("properties"), tool.parameters.get("required")
    names = required if isinstance(required, list) else []
    found = properties.items() if isinstance(properties, Mapping) else ()
    # `true` is a schema too, that of anything.
    return [(key, each if isinstance(each, Mapping) else {}, key in names) for key, each in found]


def _with_definitions(schema: Mapping[str, Any], tool: Tool) -> dict[str, Any]:
    """The schema of one parameter, standing alone."""
    kept = {key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters}
    return {**schema, **kept}


def _python(tools: Sequence[Tool]) -> list[str]:
    """Keyword arguments in the schema's order, their values as JSON, which this reader takes for Python's words too."""
    rules = [_each("function", tools)]
    for n, tool in enumerate(tools):
        parameters = _listed(tool)
        for m, (_, schema, _) in enumerate(parameters):
            rules.append(f"value_{n}_{m}: {_json(_with_definitions(schema, tool))}")
        needed = [_pair(n, m, key) for m, (key, _, must) in enumerate(parameters) if must]
        others = [_pair(n, m, key) for m, (key, _, must) in enumerate(parameters) if not must]
        if needed or not others:
            body = ' ", " '.join(needed) + "".join(f' (", " {pair})?' for pair in others)
        else:  # any of those left out: which one comes first decides where the commas stand
            tails = [pair + "".join(f' (", " {later})?' for later in others[m + 1 :]) for m, pair in enumerate(others)]
            body = f"({' | '.join(tails)})?"
        rules.append(f'function_{n}: {literal(tool.name)} "(" {body} ")"')
    return rules


def _pair(tool: int, parameter: int, key: str) -> str:
    return f"{literal(f'{key}=')} value_{tool}_{parameter}"


def _functions(tools: Sequence[Tool]) -> list[str]:
    rules = [_each("function", tools)]
    for n, tool in enumerate(tools):
        parts = []
        for m, (key, schema, must) in enumerate(_listed(tool)):
            rules.append(f"value_{n}_{m}{_bare_value(schema, tool)}")
            part = f"{literal(f'<parameter={key}>' + chr(10))} value_{n}_{m} {literal(chr(10))}"
            parts.append(f"({part})" + ("" if must else "?"))
        body = " ".join(parts)
        rules.append(f"function_{n}: {literal(f'<function={tool.name}>' + chr(10))} {body} {literal('</function>')}")
    return rules


def _bare_value(schema: Any, tool: Tool) -> str:
    """A value and the mark that ends it. A string stands there without quotes: one of an enum, or any text.

    Lengths and patterns of such a string are not kept.
    """
    types = types_of(schema, tool.parameters)
    if "string" not in types or types == TYPES:
        return f": {_json(_with_definitions(schema, tool))} {literal(chr(10) + '</parameter>')}"
    words = resolved(schema, tool.parameters)
    options = [words["const"]] if "const" in words else words.get("enum")
    if isinstance(options, list):
        said = " | ".join(literal(each if isinstance(each, str) else json.dumps(each)) for each in options)
        return f": ({said}) {literal(chr(10) + '</parameter>')}"
    return "[lazy]: /(?s:.*)<\\/parameter>/"
