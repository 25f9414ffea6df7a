"""The documents of the API for people: the fields in words, commands to copy, and all of it as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from shardwise.server.listener import address
from shardwise.server.openapi import openapi
from shardwise.server.route import Route
from shardwise.server.settings import Settings

WIDTH = 90
"""The longest body that a command has on one line."""

UNBOUNDED = 2**31 - 1
"""A bound from here on says nothing to people."""

OPENAPI, DOCS = ("/openapi.json",), ("/docs", "/")
"""Where the server shows all this: to programs, to people."""


RULES = (
    "A path that begins with `/v1` works without it, too, and doubled or trailing slashes do no harm.",
    "Where keys are set, everything but GETs of `/health`, `/ping`, `/ready` and of this description (`/openapi.json`, "
    "`/docs`, `/`) wants one: `Authorization: Bearer KEY` or `x-api-key: KEY`.",
    "Bodies are JSON, sent as `application/json`. A field that is null is as one that is absent; one that is not known is "
    "ignored, and counted in `/server_info` (in the `sampling_params` of `/inference/v1/generate` it is refused).",
    "A field without a default here is what the model's `generation_config.json` says, if it does.",
    'An error is `{"error": {"message", "type", "param", "code"}}`, in the paths of Anthropic and TGI as they have it. 400: '
    "the message says what is wrong; 401: no key, or a wrong one; 404: no such path, model or response; 429 and 503: come "
    "again after `Retry-After` seconds.",
    "A stream is server-sent events, and ends with `data: [DONE]` (those of responses, messages and TGI with their own last "
    "event). Lines that begin with a colon only keep it open.",
    "The same in a browser: `/docs`; for programs: `/openapi.json`.",
)
"""What holds for all endpoints."""


@dataclass(frozen=True, slots=True)
class Row:
    """One field of a body, in words."""

    name: str
    kind: str
    default: str
    text: str


# --- fields -----------------------------------------------------------------------------------------------------------


def rows(schema: dict[str, Any]) -> Iterator[Row]:
    """The fields of an object's schema; those that have to be given first."""
    required = schema.get("required", ())
    fields = sorted(schema.get("properties", {}).items(), key=lambda item: item[0] not in required)
    for name, field in fields:
        if name in required:
            default = "needed"
        else:
            value = field.get("default")
            default = "" if value is None else json.dumps(value)
        yield Row(name, kind(field), default, said(field))


def said(schema: dict[str, Any]) -> str:
    """What is said of a field: of one that may be null, it stands with the other type."""
    found = (each.get("description", "") for each in (schema, *schema.get("anyOf", ())))
    return str(next(filter(None, found), ""))


def kind(schema: dict[str, Any]) -> str:
    """A type with its range, in words: `integer 1..128`, `list of string`."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    for word in ("anyOf", "oneOf"):
        if word in schema:
            kinds = [kind(each) for each in schema[word] if each.get("type") != "null"]
            return " or ".join(dict.fromkeys(kinds)) or "null"
    if "enum" in schema:
        return " or ".join(json.dumps(value) for value in schema["enum"] if value is not None)
    if "const" in schema:
        return json.dumps(schema["const"])
    word = schema.get("type", "any")
    if word == "array":
        items = schema.get("items")
        return f"list of {kind(items)}{span(schema, 'minItems', 'maxItems')}" if items else "list"
    if isinstance(word, list):
        return " or ".join(each for each in word if each != "null")
    return str(word) + span(schema, "minimum", "maximum") + span(schema, "minLength", "maxLength")


def span(schema: dict[str, Any], least: str, most: str) -> str:
    low, high = schema.get(least), schema.get(most)
    low = f"above {schema['exclusiveMinimum']}" if low is None and least == "minimum" and "exclusiveMinimum" in schema else low
    high = (
        f"below {schema['exclusiveMaximum']}" if high is None and most == "maximum" and "exclusiveMaximum" in schema else high
    )
    if isinstance(high, int) and high >= UNBOUNDED:
        high = None
        if low is not None:
            return f" from {low}"
    if low is None and high is None:
        return ""
    return f" {'' if low is None else low}..{'' if high is None else high}"


# --- Markdown ---------------------------------------------------------------------------------------------------------


def markdown(routes: Sequence[Route], settings: Settings | None = None) -> str:
    """docs/api.md: the endpoints, their fields, and the table of limits."""
    settings = settings or Settings()
    described = openapi(routes)
    schemas = described["components"]["schemas"]
    parts = ["# The API", "", "Made from the routes and their structs; do not edit.", "", *(f"- {rule}" for rule in RULES)]
    parts += ["", "## Endpoints", ""]
    parts += ["| method | path | what it does |", "|---|---|---|"]
    parts += [f"| {r.method} | {', '.join(f'`{path}`' for path in r.paths)} | {cell(r.summary)} |" for r in routes]
    parts += ["", keys(routes)]
    for route in routes:
        if route.body is not None:
            parts += [
                "",
                f"### {route.method} {route.paths[0]}",
                "",
                f"{route.summary}",
                "",
                *lines(schemas[body_name(described, route)]),
            ]
            parts += ["", "```", curl(route.paths[0], route.example, settings), "```"] if route.example else []
    bodies = {body_name(described, route) for route in routes if route.body}
    parts += ["", "## Objects"]
    for name in schemas:
        if name not in bodies and (listed := lines(schemas[name])):
            parts += [
                "",
                f"### {name}",
                "",
                *([schemas[name]["description"], ""] if "description" in schemas[name] else []),
                *listed,
            ]
    parts += ["", "## Limits", "", "| name | value | what it limits |", "|---|---|---|"]
    parts += [f"| `{name}` | {number(value)} | {cell(text)} |" for name, value, text in settings.limits()]
    return "\n".join(parts) + "\n"


def keys(routes: Sequence[Route]) -> str:
    """What needs a key where there are keys, and where the server shows all this itself."""
    free = [path for route in routes if route.open for path in route.paths]
    listed = ", ".join(f"`{path}`" for path in (*free, *OPENAPI, *DOCS))
    return (
        "With `--api-key`, each request has to bring a key, as `Authorization: Bearer KEY` or `x-api-key: KEY`. Only GETs of "
        f"{listed} need none; the last three are this description as the server gives it, to programs and to people."
    )


def body_name(described: dict[str, Any], route: Route) -> str:
    """The name of a route's body among the schemas: its struct's, or a longer one where two structs are called the same."""
    content = described["paths"][route.paths[0]][route.method.lower()]["requestBody"]["content"]
    return str(content["application/json"]["schema"]["$ref"]).rpartition("/")[2]


def lines(schema: dict[str, Any]) -> list[str]:
    found = [f"| `{row.name}` | {cell(row.kind)} | {cell(row.default)} | {cell(row.text)} |" for row in rows(schema)]
    return ["| field | type | default | |", "|---|---|---|---|", *found] if found else []


def number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def base(settings: Settings) -> str:
    """Where the server is asked from its own machine."""
    return address(settings.host, settings.port)


def curl(path: str, body: dict[str, Any] | None, settings: Settings) -> str:
    """A request as a command to copy: a POST of `body`, or a GET. A long body takes several lines."""
    parts = [f"curl {'-N ' if body and body.get('stream') else ''}{base(settings)}{path}"]
    if settings.api_keys:
        parts.append("-H 'Authorization: Bearer KEY'")
    if body is not None:
        text = laid_out(body, "  ")
        quoted = text.replace("'", "'\\''")
        parts += ["-H 'Content-Type: application/json'", f"-d '{quoted}'"]
    return " \\\n  ".join(parts)


def laid_out(value: Any, indent: str) -> str:
    """JSON, on one line where it fits, else with a line for each thing in it."""
    text = json.dumps(value, ensure_ascii=False)
    if len(indent) + len(text) <= WIDTH or not isinstance(value, dict | list):
        return text
    deeper = indent + "  "
    if isinstance(value, dict):
        parts = [f"{json.dumps(name)}: {laid_out(each, deeper)}" for name, each in value.items()]
    else:
        parts = [laid_out(each, deeper) for each in value]
    first, last = "{}" if isinstance(value, dict) else "[]"
    return f"{first}\n{deeper}" + f",\n{deeper}".join(parts) + f"\n{indent}{last}"
