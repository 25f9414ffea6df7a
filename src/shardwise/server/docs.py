"""The documents of the API for people, as Markdown and as a page that needs nothing from elsewhere; the routes of both."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import Any

from shardwise.server.call import Call
from shardwise.server.openapi import openapi
from shardwise.server.reply import Json, Reply, Text
from shardwise.server.route import Route
from shardwise.server.service import Service
from shardwise.server.settings import Settings

CSS = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}"
    "h1,h2,h3{line-height:1.2}h2{margin-top:2.5rem;border-bottom:1px solid #ddd}h3{margin-top:2rem}"
    "code,pre{font:13px/1.45 ui-monospace,monospace;background:#f4f4f4;border-radius:3px}code{padding:.1em .3em}"
    "pre{padding:.7rem;overflow-x:auto}pre code{padding:0}table{border-collapse:collapse;width:100%}"
    "td,th{border-bottom:1px solid #e4e4e4;padding:.3rem .6rem;text-align:left;vertical-align:top}"
    "nav a{display:inline-block;margin-right:1rem}.m{color:#06c;font-weight:600}"
    "@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}code,pre{background:#262626}td,th,h2{border-color:#333}"
    "a,.m{color:#6af}}"
)
POLICY = f"default-src 'none'; style-src 'sha256-{base64.b64encode(sha256(CSS.encode()).digest()).decode()}'; base-uri 'none'"
PAGE_HEADERS = {"content-security-policy": POLICY, "referrer-policy": "no-referrer"}


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
    if low is None and high is None:
        return ""
    return f" {'' if low is None else low}..{'' if high is None else high}"


# --- Markdown ---------------------------------------------------------------------------------------------------------


def markdown(routes: Sequence[Route], settings: Settings | None = None) -> str:
    """docs/api.md: the endpoints, their fields, and the table of limits."""
    settings = settings or Settings()
    described = openapi(routes)
    schemas = described["components"]["schemas"]
    parts = ["# The API", "", "Made from the routes and their structs; do not edit.", "", "## Endpoints", ""]
    parts += ["| method | path | what it does |", "|---|---|---|"]
    parts += [f"| {r.method} | {', '.join(f'`{path}`' for path in r.paths)} | {cell(r.summary)} |" for r in routes]
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
            parts += ["", "```", curl(route, settings), "```"] if route.example else []
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


def curl(route: Route, settings: Settings) -> str:
    """The route's example as a command."""
    key = " -H 'Authorization: Bearer KEY'" if settings.api_keys else ""
    body = json.dumps(route.example, ensure_ascii=False).replace("'", "'\\''")
    return f"curl http://{settings.host}:{settings.port}{route.paths[0]}{key} -H 'Content-Type: application/json' -d '{body}'"


# --- the page ---------------------------------------------------------------------------------------------------------


def page(routes: Sequence[Route], settings: Settings) -> str:
    """All of it as HTML: no script, no other file."""
    described = openapi(routes)
    schemas = described["components"]["schemas"]
    tags = list(dict.fromkeys(route.tag for route in routes))
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>shardwise: the API</title><style>{CSS}</style><h1>The API</h1>",
        "<nav>",
        *(f"<a href='#{html.escape(tag)}'>{html.escape(tag)}</a>" for tag in (*tags, "objects", "limits")),
        "<a href='/openapi.json'>openapi.json</a></nav>",
    ]
    for tag in tags:
        parts.append(f"<h2 id='{html.escape(tag)}'>{html.escape(tag)}</h2>")
        for route in routes:
            if route.tag == tag:
                parts += section(route, described, settings)
    bodies = {body_name(described, route) for route in routes if route.body}
    parts.append("<h2 id=objects>objects</h2>")
    for name, schema in schemas.items():
        if name not in bodies and schema.get("properties"):
            parts += [f"<h3 id='{html.escape(name)}'>{html.escape(name)}</h3>", *field_table(schema)]
    parts.append("<h2 id=limits>limits</h2><table><tr><th>name<th>value<th>what it limits")
    parts += [
        f"<tr><td><code>{name}</code><td>{number(value)}<td>{html.escape(text)}" for name, value, text in settings.limits()
    ]
    return "".join([*parts, "</table></html>"])


def section(route: Route, described: dict[str, Any], settings: Settings) -> list[str]:
    paths = ", ".join(f"<code>{html.escape(path)}</code>" for path in route.paths)
    parts = [f"<h3><span class=m>{route.method}</span> {paths}</h3><p>{html.escape(route.summary)}"]
    if route.body is not None:
        parts += field_table(described["components"]["schemas"][body_name(described, route)])
    if route.example is not None:
        parts.append(f"<pre><code>{html.escape(curl(route, settings))}</code></pre>")
    return parts


def field_table(schema: dict[str, Any]) -> list[str]:
    parts = ["<table><tr><th>field<th>type<th>default<th>"]
    for row in rows(schema):
        shown = [html.escape(text) for text in (row.kind, row.default, row.text)]
        parts.append(f"<tr><td><code>{html.escape(row.name)}</code><td>{'<td>'.join(shown)}")
    return [*parts, "</table>"]


# --- served -----------------------------------------------------------------------------------------------------------


def documents(routes: Sequence[Route], settings: Settings) -> tuple[Route, ...]:
    """The routes that describe `routes` and themselves; each is made when it is first asked for."""

    @cache
    def described() -> dict[str, Any]:
        return openapi(everything)

    @cache
    def written() -> str:
        return page(everything, settings)

    async def openapi_json(_service: Service, _call: Call, _body: Any) -> Reply:
        return Json(described())

    async def docs(_service: Service, _call: Call, _body: Any) -> Reply:
        return Text(written(), "text/html; charset=utf-8", headers=PAGE_HEADERS)

    own = (
        Route("GET", ("/openapi.json",), openapi_json, "This description of the API, for programs.", "server"),
        Route("GET", ("/docs",), docs, "This description of the API, for people.", "server", media="text/html"),
    )
    everything = (*routes, *own)
    return own
