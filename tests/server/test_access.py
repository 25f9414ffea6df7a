"""Nothing is served without a key but what is meant to be, whichever way it is asked for."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from shardwise.engine.setup import Setup
from tests.server.demo import DEMO
from tests.server.drive import Served, serving
from tests.server.engines import ServingFake

OPEN = {"/health", "/ready", "/ping", "/version", "/openapi.json", "/docs", "/"}
DOCUMENTS = ("/openapi.json", "/docs")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
KEYS: dict[str, list[tuple[str, str]]] = {
    "none": [],
    "wrong": [("Authorization", "Bearer wrong")],
    "empty": [("Authorization", "Bearer ")],
    "no scheme": [("Authorization", "right")],
    "an empty x-api-key": [("x-api-key", "")],
    "two of one": [("Authorization", "Bearer right"), ("Authorization", "Bearer right")],
    "two x-api-keys": [("x-api-key", "right"), ("x-api-key", "wrong")],
    "right and wrong": [("Authorization", "Bearer right"), ("x-api-key", "wrong")],
    "in the address": [],
}


@pytest.fixture(scope="module")
def served(setup: Setup) -> Iterator[Served]:
    with ServingFake(setup) as engine, serving(engine, DEMO, api_keys=("right", "other")) as found:
        yield found


def raw(served: Served, target: str, method: str = "GET", headers: list[tuple[str, str]] | None = None) -> bytes:
    """The answer to a request with any target and headers, as it is."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers or [])
    with served.connect() as connection:
        head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n{lines}\r\n"
        connection.sendall(head.encode("latin-1"))
        data = b""
        while part := connection.recv(65536):
            data += part
        return data


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_every_route_needs_a_key(served: Served):
    for path in served.app.table.paths:
        target = re.sub(r"\{\w+\}", "x", path)
        for method in METHODS:
            for name, headers in KEYS.items():
                asked = f"{target}?api_key=right&key=right" if name == "in the address" else target
                found = status(raw(served, asked, method, headers))
                is_open = path in OPEN and method in ("GET", "HEAD")
                assert found == (200 if is_open else 401), (method, asked, name, found)
        for headers in ([("Authorization", "Bearer right")], [("x-api-key", "other")]):
            if path != "/v1/flood":
                assert status(raw(served, target, headers=headers)) not in (401, 403), path


def test_an_unknown_path_says_nothing_without_a_key(served: Served):
    assert status(raw(served, "/nope")) == 401
    with_key = raw(served, "/v1/dem", headers=[("x-api-key", "right")])
    assert status(with_key) == 404 and b"the nearest is /v1/demo" in with_key


PIECES = ["/", "//", "..", "/..", "/../", "/./", "%2e%2e/", "%2f", "%5c", "\\", ";", "?", "#", "%00", "%20", "%0d%0a", "@", ":"]
PIECES += ["health", "HEALTH", "/health", "v1", "/v1", "version", "/version", "openapi.json", "docs", "http://localhost", "*"]
PIECES += ["/health?", "/ready/..", "%68ealth", "%2568ealth", "x", "/named/", "?x=/health", "#/health", "//localhost/health"]


def test_no_spelling_gets_past_the_key(served: Served):
    """What is served without a key is what /health, /ready, /version and the documents say, and nothing else."""
    told = {path: served.get(path).body for path in ("/health", "/version", *DOCUMENTS)}
    assert len(set(told.values())) == 4
    source = random.Random(5)
    targets = [f"/{'/'.join(source.choices(PIECES, k=source.randint(1, 4)))}" for _ in range(150)]
    targets += ["".join(source.choices(PIECES, k=source.randint(1, 5))) for _ in range(150)]
    targets += [quote(path, safe="") for path in served.app.table.paths]
    targets += [f"/health/..{path}" for path in served.app.table.paths] + [
        f"/health%2f..{path}" for path in served.app.table.paths
    ]
    served_without = 0
    for target in filter(None, targets):
        if re.search(r"[\s]", target):
            continue
        answer = raw(served, target)
        if status(answer) == 200:
            served_without += 1
            assert answer.partition(b"\r\n\r\n")[2] in told.values(), target
        else:
            assert status(answer) in (400, 401), (target, answer[:100])
    assert served_without > 3, "some of them lead to what is open"


def test_a_browser_opens_the_documents_without_a_key(setup: Setup):
    """They tell nothing of keys; a page of another name gets them no more than anything else."""
    with ServingFake(setup) as engine, serving(engine, DEMO, api_keys=("sesame-7",)) as served:
        for path in (*DOCUMENTS, "/"):
            answer = served.get(path)
            assert answer.status == 200 and b"sesame" not in answer.body, path
            assert served.get(path, Authorization="Bearer wrong").body == answer.body, "a key is not looked at, either"
            assert served.get(path, Host="evil.example").status == 403, path
        assert served.post("/docs", {}).status == 401


def test_refusals_are_in_the_shape_of_what_was_asked(served: Served):
    """Two APIs share `/`: TGI is asked by POST, and what neither takes is told as OpenAI's API tells it."""
    shapes = {
        "tgi": {"error", "error_type"},
        "openai": {"error"},
        "anthropic": {"type", "error", "request_id"},
    }
    asked = [
        ("PUT", "/", "openai"), ("DELETE", "/", "openai"), ("POST", "/", "tgi"), ("GET", "/generate", "tgi"),
        ("GET", "/v1/messages", "anthropic"), ("POST", "/v1/messages", "anthropic"), ("DELETE", "/v1/models", "openai"),
    ]  # fmt: skip
    for method, path, shape in asked:
        for headers in ({}, {"Authorization": "Bearer right"}):
            answer = served.ask(method, path, headers=headers)
            assert answer.status in ((400, 405, 415) if headers else (401,)) and answer.json.keys() == shapes[shape], (
                method,
                path,
            )
    assert served.get("/", Host="evil.example").json["error"]["code"] == "bad_host"


def test_a_preflight_needs_no_key_and_the_request_does(setup: Setup):
    page = [("Origin", "https://page.example")]
    asked = [*page, ("Access-Control-Request-Method", "POST"), ("Access-Control-Request-Headers", "authorization,content-type")]
    with (
        ServingFake(setup) as engine,
        serving(engine, DEMO, api_keys=("right",), allow_origins=("https://page.example",)) as served,
    ):
        answer = raw(served, "/v1/demo", "OPTIONS", asked)
        assert status(answer) == 204 and b"access-control-allow-origin: https://page.example\r\n" in answer
        assert b"access-control-allow-headers: authorization,content-type\r\n" in answer
        refused = raw(served, "/v1/demo", "POST", page)
        assert status(refused) == 401 and b"access-control-allow-origin: https://page.example\r\n" in refused
        allowed = raw(served, "/version", headers=[*page, ("x-api-key", "right")])
        assert status(allowed) == 200 and b"access-control-expose-headers: x-request-id" in allowed
        assert status(raw(served, "/v1/demo", "OPTIONS", [*asked[1:], ("Origin", "https://evil.example")])) == 403


def test_ids_and_tenants(served: Served):
    given = served.get("/health", **{"X-Request-Id": "mine-7"})
    assert given.headers["x-request-id"] == "mine-7"
    for path in ("/health", "/nope", "/v1/breaks"):
        ids = {served.get(path, Authorization="Bearer right").headers["x-request-id"] for _ in range(2)}
        assert len(ids) == 2
    tenants = [
        served.post("/v1/demo", {"prompt": "a"}, Authorization=f"Bearer {key}").json["tenant"] for key in ("right", "other")
    ]
    assert len(set(tenants)) == 2 and "" not in tenants and "right" not in tenants


def test_methods(served: Served):
    key = [("x-api-key", "right")]
    assert b"allow: POST, OPTIONS\r\n" in raw(served, "/v1/demo", "GET", key)
    options = raw(served, "/v1/demo", "OPTIONS", key)
    assert status(options) == 204 and b"allow: POST, OPTIONS\r\n" in options
    head = raw(served, "/health", "HEAD")
    assert status(head) == 200 and b"content-length: 16\r\n" in head and head.endswith(b"\r\n\r\n")
