"""The routes as an OpenAPI 3.1 description, made from the structs that also check the requests."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from shardwise.server.call import Call
from shardwise.server.health import installed
from shardwise.server.refusal import Refusal
from shardwise.server.route import Route

REF = "#/components/schemas/{name}"

STATUSES = {
    400: "A field is missing, unknown to the model, of the wrong type or out of range; the message names it.",
    401: "No key, or a wrong one.",
    403: "Asked under a name, or from a page, that the server was not told of.",
    404: "Unknown path, model or id; the message names what there is.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is no JSON, or compressed.",
    429: "The queue is full; Retry-After says when to come back.",
    500: "The server failed; its log says more under the X-Request-Id.",
    503: "The server starts, stops, or has lost its engine.",
    504: "The request took too long.",
}
BODY_ONLY = (408, 413, 415)


class ErrorBody(msgspec.Struct):
    """`type` is a family of errors, `code` a word for this one, `param` the field at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(msgspec.Struct):
    """What every request gets that is refused or fails."""

    error: ErrorBody


def openapi(routes: Sequence[Route]) -> dict[str, Any]:
    """The whole description, as plain values."""
    types: dict[Any, None] = dict.fromkeys(kind for route in routes for kind in (route.body, route.reply) if kind is not None)
    schemas, components = msgspec.json.schema_components([*types, Error], ref_template=REF)
    short = {name: plain(name) for name in components}
    schemas, components = renamed(schemas, short), {short[name]: renamed(schema, short) for name, schema in components.items()}
    refs = dict(zip(types, schemas, strict=False))
    for kind in dict.fromkeys(route.body for route in routes if route.body is not None):
        let_null(components[refs[kind]["$ref"].rpartition("/")[2]])
    paths: dict[str, dict[str, Any]] = {}
    names: dict[str, int] = {}
    for route in routes:
        name = route.endpoint.__name__.strip("_")
        names[name] = number = names.get(name, 0) + 1
        unique = name if number == 1 else f"{name}_{number}"
        paths.setdefault(route.paths[0], {})[route.method.lower()] = {"operationId": unique, **operation(route, refs)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "shardwise", "version": installed(), "description": "Language models over OpenAI's API and others."},
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"key": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def let_null(schema: dict[str, Any]) -> None:
    """At the top of a body, null means that a field is not given."""
    for name, field in schema.get("properties", {}).items():
        kinds = field.get("anyOf", [field])
        # An enum without a type may have null in it; a schema without anything takes all.
        takes = any(each.get("type") == "null" or None in each.get("enum", ()) or not each for each in kinds)
        if name not in schema.get("required", ()) and not takes:
            notes = {key: field.pop(key) for key in ("default", "description", "title") if key in field}
            schema["properties"][name] = {"anyOf": [*field.get("anyOf", [field]), {"type": "null"}], **notes}


def plain(name: str) -> str:
    """`package.chat_body.Reply` as ChatBodyReply."""
    *modules, last = name.split(".")
    return (modules[-1].title().replace("_", "") if modules else "") + last


def renamed(value: Any, names: Mapping[str, str]) -> Any:
    """With other names of components: of two structs that are called the same, msgspec's has the module and its folders."""
    if isinstance(value, Mapping):
        if isinstance(ref := value.get("$ref"), str):
            return {"$ref": REF.format(name=names[ref.rpartition("/")[2]])}
        return {key: renamed(each, names) for key, each in value.items()}
    return [renamed(each, names) for each in value] if isinstance(value, list | tuple) else value


def operation(route: Route, refs: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"summary": route.summary, "tags": [route.tag]}
    if len(route.paths) > 1:
        found["description"] = f"Also at {', '.join(route.paths[1:])}."
    if route.open:
        found["security"] = []
    if names := re.findall(r"\{(\w+)\}", route.paths[0]):
        found["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}} for name in names
        ]
    if route.body is not None:
        content: dict[str, Any] = {"schema": refs[route.body]}
        if route.example is not None:
            content["example"] = route.example
        found["requestBody"] = {"required": True, "content": {"application/json": content}}
    found["responses"] = responses(route, refs)
    return found


def responses(route: Route, refs: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    given: dict[str, Any] = {route.media: {"schema": refs[route.reply] if route.reply else {}}}
    if route.streams:
        given["text/event-stream"] = {}
    found: dict[str, Any] = {"200": {"description": "What was asked for.", "content": given}}
    statuses = [status for status in STATUSES if route.body is not None or status not in BODY_ONLY]
    for status in statuses if not route.open else [500, 503]:
        found[str(status)] = {"description": STATUSES[status], "content": {"application/json": shape(route, status)}}
    found["default"] = {"description": "Any other refusal.", "content": {"application/json": shape(route, 400)}}
    return found


def shape(route: Route, status: int) -> dict[str, Any]:
    """The body of a refusal, as this route's API has it."""
    refusal = Refusal(status, STATUSES[status])
    if route.errors is None:
        return {"schema": {"$ref": REF.format(name="Error")}, "example": refusal.openai()}
    return {"schema": {"type": "object"}, "example": route.errors(refusal, Call("id", "", time.monotonic(), route.paths[0]))}
