"""The documents of the API as one page that needs nothing from elsewhere: no script, no other file. How it looks is in
`style.py`, what it says comes from the routes; knows nothing of a running server but its settings."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from shardwise.server.call import Call
from shardwise.server.docs import DOCS, OPENAPI, Row, base, body_name, curl, number, rows
from shardwise.server.openapi import openapi
from shardwise.server.recipes import RECIPES
from shardwise.server.reply import Json, Reply, Text
from shardwise.server.route import Route
from shardwise.server.service import Service
from shardwise.server.settings import Settings
from shardwise.server.style import CSS, HEADERS

TITLES = {"text": "Text", "messages": "Messages (Anthropic)", "tgi": "Text Generation Inference"}
"""What a tag is called; another one as it is, with a capital."""

SHORT = 12
"""A table of more rows than these is folded until it is asked for."""

e = html.escape


def page(routes: Sequence[Route], settings: Settings) -> str:
    """The whole page."""
    described = openapi(routes)
    schemas = described["components"]["schemas"]
    bodies = {body_name(described, route) for route in routes if route.body}
    objects = {name: schema for name, schema in schemas.items() if name not in bodies and schema.get("properties")}
    tags = list(dict.fromkeys(route.tag for route in routes))
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<title>shardwise: the API</title><style>{CSS}</style><body>",
        *contents(routes, tags),
        "<main><h1>shardwise: the API</h1>",
        *first(routes, settings),
    ]
    for tag in tags:
        parts.append(f"<h2 id='{e(tag)}'>{e(title(tag))}</h2>")
        for route in routes:
            if route.tag == tag:
                parts += section(route, described, objects, settings)
    parts.append("<h2 id=objects>Objects</h2><p>What requests and answers are made of.")
    for name, schema in objects.items():
        text = f"<p>{e(schema['description'])}" if "description" in schema else ""
        table = "".join(field_table(list(rows(schema)), objects))
        parts.append(f"<details><summary><code>{e(name)}</code></summary><div id='{e(name)}'>{text}{table}</div></details>")
    parts += ["<h2 id=limits>Limits</h2>", *limits(settings)]
    return "".join([*parts, "</main></body></html>"])


def title(tag: str) -> str:
    return TITLES.get(tag, tag.capitalize())


def anchor(route: Route) -> str:
    """The name of an endpoint's place on the page: post-v1-chat-completions."""
    return f"{route.method}-{re.sub('[^a-z0-9]+', '-', route.paths[0].lower()).strip('-')}".lower().rstrip("-")


def method(route: Route) -> str:
    return f"<i class={route.method.lower()}>{route.method}</i>"


def contents(routes: Sequence[Route], tags: Sequence[str]) -> Iterator[str]:
    """What is on the page; a narrow screen shows the headings only."""
    yield "<nav aria-label=Contents><a class=top href='#first'>First steps</a><ul>"
    for tag in tags:
        yield f"<li><a href='#{e(tag)}'>{e(title(tag))}</a><ul>"
        for route in routes:
            if route.tag == tag:
                yield f"<li><a href='#{anchor(route)}'>{method(route)}{e(route.paths[0])}</a>"
        yield "</ul>"
    yield "<li><a href='#objects'>Objects</a><li><a href='#limits'>Limits</a>"
    yield "<li><a href='/openapi.json'>openapi.json</a></ul></nav>"


def first(routes: Sequence[Route], settings: Settings) -> Iterator[str]:
    """Where clients point to, and what to copy first."""
    key = "any text" if not settings.api_keys else "the key of this server"
    yield f"<p class=lead id=first>OpenAI's clients use the address <code>{e(base(settings))}/v1</code>, and {key} as the key. "
    yield "Anthropic's use the same without <code>/v1</code>. The field <code>model</code> may be left out."
    by_path = {route.paths[0]: route for route in routes if route.method == "POST"}
    for recipe in RECIPES:
        if recipe.path in by_path:
            yield f"<h3>{e(recipe.title)}</h3>{block(curl(recipe.path, recipe.body, settings))}"


def section(route: Route, described: dict[str, Any], objects: Mapping[str, Any], settings: Settings) -> Iterator[str]:
    """One endpoint: what it does, an example, what it takes and what it gives."""
    also = ", ".join(f"<code>{e(path)}</code>" for path in route.paths[1:])
    yield f"<section id='{anchor(route)}'><h3>{method(route)} "
    yield f"<a href='#{anchor(route)}'>{e(route.paths[0])}</a></h3><p>{e(route.summary)}"
    yield f" Also at {also}." if also else ""
    yield " It needs no key." if route.open and settings.api_keys else ""
    if route.example is not None:
        yield block(curl(route.paths[0], route.example, settings))
    elif route.method == "GET" and "{" not in route.paths[0]:
        yield block(curl(route.paths[0], None, settings))
    if route.body is not None:
        fields = list(rows(described["components"]["schemas"][body_name(described, route)]))
        table = "".join(field_table(fields, objects))
        shown = " open" if len(fields) <= SHORT else ""
        yield f"<details{shown}><summary>{len(fields)} field{'s' * (len(fields) != 1)}</summary>{table}</details>"
    if reply := answer(route, described):
        stream = '; with <code>"stream": true</code>, events with its parts' if route.streams and route.body else ""
        yield f"<p class=gives>Gives {linked(reply, objects)}{stream}."
    yield "</section>"


def answer(route: Route, described: dict[str, Any]) -> str:
    """The name of what a route gives as JSON, where it has one."""
    given = described["paths"][route.paths[0]][route.method.lower()]["responses"]["200"]["content"]
    return str(given.get("application/json", {}).get("schema", {}).get("$ref", "")).rpartition("/")[2]


def block(command: str) -> str:
    return f"<pre><code>{e(command)}</code></pre>"


def field_table(fields: Sequence[Row], objects: Mapping[str, Any]) -> Iterator[str]:
    yield "<table><thead><tr><th>field<th>type<th>what it is</thead>"
    for row in fields:
        default = (
            f" <small>{e(row.default if row.default == 'needed' else f'default {row.default}')}</small>" if row.default else ""
        )
        yield f"<tr><td><code>{e(row.name)}</code>{default}<td>{linked(row.kind, objects)}<td>{e(row.text)}"
    yield "</table>"


def linked(kind: str, objects: Mapping[str, Any]) -> str:
    """A type, with the objects in it as links to them."""
    words = re.split(r"(\w+)", kind)
    return "".join(f"<a href='#{e(word)}'>{e(word)}</a>" if word in objects else e(word) for word in words)


def limits(settings: Settings) -> Iterator[str]:
    yield "<table><thead><tr><th>name<th>value<th>what it limits</thead>"
    for name, value, text in settings.limits():
        yield f"<tr><td><code>{name}</code><td>{number(value)}<td>{e(text)}"
    yield "</table>"


def documents(routes: Sequence[Route], settings: Settings) -> tuple[Route, ...]:
    """The routes that describe `routes` and themselves; each is made when it is first asked for. They tell no secrets, and a
    browser sends no key: they are open, as in vLLM."""

    @cache
    def described() -> dict[str, Any]:
        return openapi(everything)

    @cache
    def written() -> str:
        return page(everything, settings)

    async def openapi_json(_service: Service, _call: Call, _body: Any) -> Reply:
        return Json(described())

    async def docs(_service: Service, _call: Call, _body: Any) -> Reply:
        return Text(written(), "text/html; charset=utf-8", headers=HEADERS)

    own = (
        Route("GET", OPENAPI, openapi_json, "This description of the API, for programs.", "server", open=True),
        Route("GET", DOCS, docs, "This description of the API, for people.", "server", media="text/html", open=True),
    )
    everything = (*routes, *own)
    return own
