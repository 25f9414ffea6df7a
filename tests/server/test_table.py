"""Paths lead to routes: as they are, as clients spell them, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest

from shardwise.server.route import Route
from shardwise.server.table import Table


async def nothing(*_: Any) -> Any: ...


def route(method: str, *paths: str) -> Route:
    return Route(method, paths, nothing, paths[0], "t")


TABLE = Table(
    [
        route("GET", "/health"),
        route("GET", "/v1/models"),
        route("GET", "/v1/models/{model}"),
        route("POST", "/v1/chat/completions"),
        route("POST", "/v1/responses"),
        route("GET", "/v1/responses/{id}"),
        route("DELETE", "/v1/responses/{id}"),
        route("POST", "/v1/responses/{id}/cancel"),
    ]
)


@pytest.mark.parametrize(
    ("path", "expected", "values"),
    [
        ("/health", "/health", {}),
        ("/v1/health", "/health", {}),
        ("//health//", "/health", {}),
        ("/v1/models", "/v1/models", {}),
        ("/v1/models/", "/v1/models", {}),
        ("//v1//models", "/v1/models", {}),
        ("/v1/v1/models", "/v1/models", {}),
        ("/models", "/v1/models", {}),
        ("/v1/models/a", "/v1/models/{model}", {"model": "a"}),
        ("/v1/models/org/name", "/v1/models/{model}", {"model": "org/name"}),
        ("/models/org/name", "/v1/models/{model}", {"model": "org/name"}),
        ("/v1/responses/r1", "/v1/responses/{id}", {"id": "r1"}),
        ("/v1/responses/r1/cancel", "/v1/responses/{id}/cancel", {"id": "r1"}),
        ("/chat/completions", "/v1/chat/completions", {}),
        ("/V1/models", None, {}),
        ("/v1", None, {}),
        ("/", None, {}),
        ("", None, {}),
        ("/v2/models", None, {}),
        ("/v1/../health", None, {}),
        ("/./health", None, {}),
        ("/health\x00", None, {}),
        ("/v1\\models", None, {}),
        ("/v1/models/{model}", "/v1/models/{model}", {"model": "{model}"}),
    ],
)
def test_paths(path: str, expected: str | None, values: dict[str, str]):
    found = TABLE.find(path)
    if expected is None:
        assert found is None
    else:
        assert found is not None and next(iter(found.routes.values())).summary == expected and found.values == values


def test_methods():
    found = TABLE.find("/v1/responses/x")
    assert found is not None and set(found.routes) == {"GET", "DELETE"} and found.allow == "GET, DELETE, HEAD, OPTIONS"
    assert found.route("HEAD") is found.routes["GET"] and found.route("POST") is None


def test_the_nearest_path_is_named():
    assert TABLE.nearest("/v1/chat/completion") == "/v1/chat/completions"
    assert TABLE.nearest("/chat/completion") == "/v1/chat/completions"
    assert TABLE.nearest("/zzzzzzzz") is None and TABLE.nearest("/metrics") is None


def test_a_path_has_one_route():
    with pytest.raises(ValueError, match="two routes serve GET /health"):
        Table([route("GET", "/health"), route("GET", "/health")])
