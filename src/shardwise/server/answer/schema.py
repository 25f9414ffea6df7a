"""What a JSON schema says of a value's type, as far as formats need it that write values without quotes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

_REFERENCES = 8  # how many one leads to another
TYPES = ("string", "integer", "number", "boolean", "null", "object", "array")


def resolved(schema: object, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema that `schema` refers to by `#/...`, itself if it does not."""
    for _ in range(_REFERENCES):
        if not isinstance(schema, Mapping):
            return {}
        target = schema.get("$ref")
        if not isinstance(target, str) or not target.startswith("#/"):
            return schema
        found: Any = root
        for part in target[2:].split("/"):
            found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
        schema = found
    return {}


def types_of(schema: object, root: Mapping[str, Any]) -> tuple[str, ...]:
    """The JSON types that values of the schema may have; all of them if it does not say."""
    plain = resolved(schema, root)
    named = plain.get("type")
    if isinstance(named, str):
        return (named,)
    if isinstance(named, list):
        return tuple(each for each in named if isinstance(each, str))
    if "const" in plain:
        return (type_of(plain["const"]),)
    if isinstance(plain.get("enum"), list):
        return tuple(dict.fromkeys(type_of(each) for each in plain["enum"]))
    for key in ("anyOf", "oneOf"):
        if isinstance(plain.get(key), list):
            return tuple(dict.fromkeys(name for each in plain[key] for name in types_of(each, root)))
    return TYPES


def type_of(value: object) -> str:
    """The JSON type of a parsed value; a whole number is an integer."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, float):
        return "number"
    return {str: "string", int: "integer", dict: "object"}.get(type(value), "array")


def typed(text: str, schema: object, root: Mapping[str, Any]) -> Any:
    """The value that bare `text` means under the schema: itself where a string may stand, else as JSON, else itself.

    As vLLM's qwen3_coder parser does it, save that a string stays one whatever it looks like, and that Python's True, False and
    None are read where a string may not stand.
    """
    types = types_of(schema, root)
    if "null" in types and text == "null":
        return None
    if "string" in types and types != TYPES:
        return text
    try:
        value = json.loads({"True": "true", "False": "false", "None": "null"}.get(text.strip(), text), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, float) and not math.isfinite(value):
        return text
    kind = type_of(value)
    # An integer is a number. JSON schema also takes 1.0 for an integer.
    fits = kind in types or (kind == "integer" and "number" in types)
    fits = fits or (isinstance(value, float) and value.is_integer() and "integer" in types)
    return value if fits else text


def _refuse(word: str) -> None:
    raise ValueError(word)
