"""JSON schemas at random, and whether a text is what one asks for: our own reading of the part of JSON Schema in them."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

SCALARS: list[dict[str, Any]] = [
    {"type": "integer"},
    {"type": "integer", "minimum": -3, "maximum": 40},
    {"type": "number"},
    {"type": "boolean"},
    {"type": "null"},
    {"type": "string"},
    {"type": "string", "maxLength": 4},
    {"type": "string", "minLength": 2, "maxLength": 3},
    {"enum": ["é", "a b", 3, None]},
    {"const": "fixed"},
]
KEYS = ["a", "b", "name", "ключ", 'q"']


def _object(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    properties = st.dictionaries(st.sampled_from(KEYS), inner, max_size=3)
    return properties.flatmap(
        lambda found: st.builds(
            lambda needed: {"type": "object", "properties": found, "required": needed, "additionalProperties": False},
            st.lists(st.sampled_from(list(found)), unique=True) if found else st.just([]),
        )
    )


def _array(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        lambda items, least, more: {"type": "array", "items": items, "minItems": least, "maxItems": least + more},
        inner, st.integers(0, 2), st.integers(0, 2),
    )  # fmt: skip


schemas = st.recursive(
    st.sampled_from(SCALARS),
    lambda inner: _object(inner) | _array(inner) | st.builds(lambda one, two: {"anyOf": [one, two]}, inner, inner),
    max_leaves=5,
)


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is what a schema of those above asks for."""
    if "anyOf" in schema:
        return any(fits(value, one) for one in schema["anyOf"])
    if "const" in schema:
        return bool(value == schema["const"])
    if "enum" in schema:
        return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in schema["enum"])
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match schema["type"]:
        case "object":
            order = [key for key in schema["properties"] if key in value] if isinstance(value, dict) else None
            return (
                order is not None
                and list(value) == order
                and set(schema["required"]) <= set(value)
                and all(fits(each, schema["properties"][key]) for key, each in value.items())
            )
        case "array":
            sized = isinstance(value, list) and schema.get("minItems", 0) <= len(value) <= schema["maxItems"]
            return sized and all(fits(each, schema["items"]) for each in value)
        case "string":
            return isinstance(value, str) and schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
        case "integer":
            whole = number and value == int(value)
            return whole and schema.get("minimum", value) <= value <= schema.get("maximum", value)
        case "number":
            return number
        case "boolean":
            return isinstance(value, bool)
    return value is None


def answers(text: str, schema: dict[str, Any]) -> bool:
    """Whether a text is JSON that fits, each key once."""
    return fits(json.loads(text, object_pairs_hook=_once), schema)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len({key for key, _ in pairs}) == len(pairs)
    return dict(pairs)
