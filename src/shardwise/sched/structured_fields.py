"""The names under which clients ask for structured output, vLLM's, OpenAI's, SGLang's, TGI's and llama.cpp's, become one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from shardwise.errors import RequestError
from shardwise.sched.checks import shown
from shardwise.sched.structured import StructuredOutputs, structured

FORMATS = ("text", "json_object", "json_schema", "regex", "structural_tag")


Read = Callable[[object, str], StructuredOutputs | None]
"""What a field's value asks for; it is told the field's name."""


def _as(kind: str) -> Read:
    """Reads what one field of StructuredOutputs takes."""
    return lambda value, name: StructuredOutputs(**{kind: value}, name=name)  # type: ignore[arg-type]  # it says itself what it takes


_json, _regex = _as("json"), _as("regex")


def _grammar(value: object, name: str) -> StructuredOutputs | None:
    """A text is a grammar (vLLM, llama.cpp), an object says what it is of (TGI)."""
    if not isinstance(value, Mapping):
        return StructuredOutputs(grammar=value, name=name)  # type: ignore[arg-type]
    kind, inner = value.get("type"), value.get("value")
    if kind in ("regex", "json") and inner is None:
        raise RequestError(f"{name} has no value; it takes an object with type and value")
    if kind == "regex":
        return _regex(inner, f"{name}.value")
    if kind in ("json", "json_object"):
        return _json(inner, f"{name}.value")
    if kind == "json_schema":
        return _json(*_schema_in(inner, f"{name}.value"))
    raise RequestError(f"{name}.type is {shown(kind)}; it takes json, json_schema or regex, or the whole is a text")


def _response_format(value: object, name: str) -> StructuredOutputs | None:
    if not isinstance(value, Mapping):
        raise RequestError(f'{name} is {shown(value)}; it takes an object such as {{"type": "json_object"}}')
    match value.get("type"):
        case "text":
            return None
        case "json_object" | "json":
            # With a schema beside it: `schema` as llama.cpp has it, `value` as TGI does, which calls the type json as well.
            for field in ("value", "schema"):
                if (beside := value.get(field)) is not None:
                    return _json(beside, f"{name}.{field}")
            return StructuredOutputs(json_object=True, name=name)
        case "json_schema":
            # Flat as in OpenAI's Responses, or one level down as in its chat.
            named = value.get("json_schema")
            flat = named is None and value.get("schema") is not None
            return _json(*_schema_in(value if named is None else named, name if flat else f"{name}.json_schema"))
        case "regex":
            pattern = value.get("pattern", value.get("regex", value.get("value")))
            if pattern is None:
                raise RequestError(
                    f"{name}.pattern is missing; with the type regex it is the expression that the answer matches"
                )
            return _regex(pattern, f"{name}.pattern")
        case "structural_tag":  # its fields lie beside the type
            return StructuredOutputs(structural_tag=value, name=name)
        case kind:
            raise RequestError(f"{name}.type is {shown(kind)}, which is not supported; it takes one of {', '.join(FORMATS)}")


def _schema_in(value: object, name: str) -> tuple[object, str]:
    """The schema, and what messages call it, out of OpenAI's {name, schema, strict}. Every schema is held to strictly, whatever
    `strict` says."""
    if not isinstance(value, Mapping) or value.get("schema") is None:
        raise RequestError(f"{name} has no schema; it takes an object with name and schema")
    return value["schema"], f"{name}.schema"


SPELLINGS: dict[str, Read] = {
    "structured_outputs": structured, "response_format": _response_format,
    "guided_json": _json, "guided_regex": _regex, "guided_choice": _as("choice"), "guided_grammar": _grammar,
    "json_schema": _json, "regex": _regex, "ebnf": _grammar, "grammar": _grammar,
    "structural_tag": _as("structural_tag"),
}  # fmt: skip
"""By the name of the field."""


def structured_field(given: Mapping[str, object]) -> StructuredOutputs | None:
    """What the fields of a body ask for in all; None where they ask for nothing. RequestError where two contradict."""
    found: dict[str, StructuredOutputs] = {}
    for name, read in SPELLINGS.items():
        # An empty text is what some clients send for a field that they do not use.
        if (value := given.get(name)) is None or value == "":
            continue
        try:
            one = read(value, name)
        except RequestError as error:
            raise RequestError(str(error) if name in str(error) else f"{name}: {error}") from None
        if one is not None:
            found[name] = one
    different = list(dict.fromkeys(map(_meaning, found.values())))
    if len(different) > 1:
        raise RequestError(f"{' and '.join(found)} ask for different forms of the answer; give one of them")
    return next(iter(found.values()), None)


def _meaning(one: StructuredOutputs) -> tuple[object, ...]:
    """Equal for two that ask for the same; the order of keys is no difference."""
    schema, tag = (
        json.dumps(json.loads(text), sort_keys=True) if isinstance(text, str) else None
        for text in (one.json, one.structural_tag)
    )
    return (schema, one.regex, one.choice, one.grammar, tag, one.kind)
