"""What a JSON schema says of a text's `format`, as far as it binds: the grammar library refuses formats that it does not know.

By JSON Schema 2020-12 (format-annotation) they are remarks, so they are left out. Other assertions stay, known or not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

KNOWN_FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
)  # which llguidance 1.9.1 holds an answer to

# Where schemas stand within a schema, by the keyword: one or a list of them, or an object of them by names. Elsewhere, in
# `enum` or `default`, an object with a `format` is a value.
_SCHEMAS = (
    *("items", "prefixItems", "additionalItems", "unevaluatedItems", "contains", "additionalProperties"),
    *("unevaluatedProperties", "propertyNames", "contentSchema", "allOf", "anyOf", "oneOf", "not", "if", "then", "else"),
)
_BY_NAME = ("properties", "patternProperties", "dependentSchemas", "dependencies", "$defs", "definitions")


def bound_formats(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the schema, plain JSON, without the formats that bind nothing."""
    root: dict[str, Any] = json.loads(json.dumps(schema))
    seen, waiting = set[int](), [root]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        named = one.get("format")
        if isinstance(named, str) and named not in KNOWN_FORMATS:
            del one["format"]
        waiting += _within(one, root)
    return root


def _within(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The schemas that stand in this one, and the one that it refers to."""
    found: list[object] = [_target(schema.get("$ref"), root)]
    for key in _SCHEMAS:
        value = schema.get(key)
        found += value if isinstance(value, list) else [value]
    for key in _BY_NAME:
        if isinstance(value := schema.get(key), dict):
            found += value.values()
    return (each for each in found if isinstance(each, dict))


def _target(reference: object, root: Mapping[str, Any]) -> object:
    """What `#/...` points to: it may stand under a keyword that is none of the schema's own."""
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    found: object = root
    for part in reference[2:].split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and key.isdecimal() and len(key) < 7:
            found = found[int(key)] if int(key) < len(found) else None
        else:
            found = found.get(key) if isinstance(found, dict) else None
    return found
