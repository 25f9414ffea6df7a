"""OpenAPI, the page and the Markdown say what the routes say."""

from __future__ import annotations

import base64
import json
import re
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec

from shardwise.server.docs import RULES, body_name, markdown, rows
from shardwise.server.openapi import openapi
from shardwise.server.page import documents
from shardwise.server.route import Route
from shardwise.server.routes import ROUTES
from shardwise.server.settings import Settings
from tests.server.demo import DEMO
from tests.server.drive import serving
from tests.server.engines import ServingFake


def refs(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [ref for each in value.values() for ref in refs(each)]
    return [ref for each in value for ref in refs(each)] if isinstance(value, list) else []


def test_openapi_describes_every_route(engine: ServingFake):
    with serving(engine, DEMO) as served:
        described = served.get("/openapi.json").json
    paths = {route.paths[0] for route in DEMO} | {"/openapi.json", "/docs"}
    assert described["openapi"] == "3.1.0" and set(described["paths"]) == paths
    assert all(ref.rpartition("/")[2] in described["components"]["schemas"] for ref in refs(described))
    names = [operation["operationId"] for path in described["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))
    demo = described["paths"]["/v1/demo"]["post"]
    assert demo["requestBody"]["content"]["application/json"]["example"] == {"prompt": "Once"}
    assert set(demo["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert {"400", "401", "413", "415", "429", "503"} <= set(demo["responses"])
    assert described["paths"]["/health"]["get"]["security"] == [] and "security" not in demo
    tokens = described["components"]["schemas"]["Ask"]["properties"]["max_tokens"]
    assert (tokens["anyOf"][0]["minimum"], tokens["anyOf"][0]["maximum"], tokens["default"]) == (1, 100_000, 4)
    assert "anyOf" not in described["components"]["schemas"]["Ask"]["properties"]["prompt"]
    assert described["components"]["schemas"]["Ask"]["properties"]["items"]["anyOf"][1] == {"type": "null"}, "null is not given"
    assert [each["name"] for each in described["paths"]["/v1/named/{name}"]["get"]["parameters"]] == ["name"]


def test_structs_of_the_same_name_are_told_apart():
    one, other = (
        msgspec.defstruct("Reply", [("a", kind)], namespace={"__module__": f"x.{name}_part"})
        for name, kind in (("one", int), ("other", str))
    )
    routes = [Route("GET", (f"/{kind.__module__}",), DEMO[0].endpoint, "S.", "t", reply=kind) for kind in (one, other)]
    described = openapi(routes)
    assert {"OnePartReply", "OtherPartReply"} <= set(described["components"]["schemas"])
    assert all(ref.rpartition("/")[2] in described["components"]["schemas"] for ref in refs(described))


class Page(HTMLParser):
    """What a page asks a browser to fetch, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "link", "iframe"):
            self.fetched.append(f"{tag} {attrs}")
        assert not any(name.startswith("on") or name == "style" for name in given)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone(engine: ServingFake):
    with serving(engine, DEMO, api_keys=("k",)) as served:
        answer = served.get("/docs")
    assert answer.status == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
    page = Page()
    page.feed(answer.body.decode())
    style = re.search(r"<style>(.*?)</style>", answer.body.decode(), re.DOTALL)
    assert style is not None and page.fetched == []
    policy = answer.headers["content-security-policy"]
    digest = base64.b64encode(sha256(style[1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ") and f"'sha256-{digest}'" in policy
    for text in (
        "/v1/demo",
        "How many tokens to make.",
        "integer 1..100000",
        "max_body_bytes",
        "Authorization: Bearer KEY",
        "list of Item",
    ):
        assert text in page.text, text
    assert "https://" not in answer.body.decode()


def test_the_markdown_has_the_limits_and_the_fields():
    text = markdown(DEMO)
    for name, _value, words in Settings().limits():
        assert f"| `{name}` | " in text and words in text
    assert "| `max_body_bytes` | 4194304 |" in text
    assert "| `prompt` | string | needed | The beginning. |" in text and "### POST /v1/demo" in text
    assert json.dumps(openapi(DEMO)) == json.dumps(openapi(DEMO)) and markdown(DEMO) == text


def test_what_the_rules_say_of_keys_holds():
    """The paths that need none are those that are named."""
    rule = next(rule for rule in RULES if "wants one" in rule)
    everything = (*ROUTES, *documents(ROUTES, Settings()))
    assert {path for route in everything if route.open for path in route.paths} == set(re.findall("`(/[a-z.]*)`", rule))


def test_docs_api_md_is_what_the_routes_say():
    kept = Path(__file__).parents[2] / "docs" / "api.md"
    assert kept.read_text() == markdown(ROUTES), "run `make docs`"


def test_every_field_is_explained():
    described = openapi(ROUTES)
    schemas = described["components"]["schemas"]
    names = {body_name(described, route) for route in ROUTES if route.body is not None}
    assert len(names) > 10
    assert [f"{name}.{row.name}" for name in sorted(names) for row in rows(schemas[name]) if not row.text] == []
