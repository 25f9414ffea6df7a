"""Who may ask: hosts, pages, keys; and that a key is compared in a time that tells nothing of it."""

from __future__ import annotations

import ast
import inspect
import textwrap

import pytest

from shardwise.server import guard
from shardwise.server.guard import Guard, request_id
from shardwise.server.refusal import Refusal
from shardwise.server.settings import Settings


def heads(**given: str | list[str]) -> list[tuple[bytes, bytes]]:
    """Headers as ASGI has them; a list repeats one."""
    pairs = ((name, value) for name, values in given.items() for value in (values if isinstance(values, list) else [values]))
    return [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in pairs]


def status(check: object, *args: object) -> int:
    """Of the refusal; 200 where there is none."""
    try:
        check(*args)  # type: ignore[operator]
    except Refusal as refusal:
        return refusal.status
    return 200


@pytest.mark.parametrize(
    ("host", "local", "everywhere", "named"),
    [
        ("localhost", 200, 200, 200),
        ("LOCALHOST:8000", 200, 200, 200),
        ("localhost.", 200, 200, 200),
        ("127.0.0.1:1", 200, 200, 200),
        ("[::1]:8000", 200, 200, 200),
        ("192.168.1.7:8000", 403, 200, 403),
        ("[fe80::1]", 403, 200, 403),
        ("evil.example", 403, 403, 403),
        ("evil.example:8000", 403, 403, 403),
        ("localhost.evil.example", 403, 403, 403),
        ("127.0.0.1.evil.example", 403, 403, 403),
        ("my.server", 403, 403, 200),
        ("notmy.server", 403, 403, 403),
        ("", 400, 400, 400),
        ("user@localhost", 400, 400, 400),
        ("localhost/x", 400, 400, 400),
        ("localhost:80:80", 400, 400, 400),
        ("localhost:http", 400, 400, 400),
        ("local host", 400, 400, 400),
        ("127.0.0.1\\@evil", 400, 400, 400),
        ("[::1", 400, 400, 400),
        ("a" * 5000, 403, 403, 403),
    ],
)
def test_hosts(host: str, local: int, everywhere: int, named: int):
    for settings, expected in (
        (Settings(), local),
        (Settings(host="0.0.0.0"), everywhere),
        (Settings(allowed_hosts=("my.server",)), named),
    ):
        assert status(Guard(settings).check_host, heads(host=host)) == expected
    assert status(Guard(Settings(allowed_hosts=("*",))).check_host, heads(host=host)) == (400 if local == 400 else 200)


def test_one_host_header():
    assert status(Guard(Settings()).check_host, []) == 400
    assert status(Guard(Settings()).check_host, heads(host=["localhost", "localhost"])) == 400


@pytest.mark.parametrize(
    ("origin", "closed", "listed"),
    [
        ("http://localhost:8000", 200, 200),
        ("http://localhost:3000", 403, 403),
        ("https://page.example", 403, 200),
        ("https://page.example.evil", 403, 403),
        ("null", 403, 403),
        ("", 403, 403),
    ],
)
def test_origins(origin: str, closed: int, listed: int):
    given = heads(host="localhost:8000", origin=origin)
    assert status(Guard(Settings()).origin, given) == closed
    allowed = Guard(Settings(allow_origins=("https://page.example",)))
    assert status(allowed.origin, given) == listed
    if listed == 200 and closed != 200:
        assert allowed.origin(given)["access-control-allow-origin"] == origin
    assert Guard(Settings()).origin(heads(host="localhost")) == {}
    assert Guard(Settings(allow_origins=("*",))).origin(given)["access-control-allow-origin"] == origin


def test_preflights():
    asked = heads(origin="https://a", access_control_request_method="POST", access_control_request_headers="x-api-key, x-y")
    found = Guard.preflight("OPTIONS", asked)
    assert found is not None and found["access-control-allow-headers"] == "x-api-key, x-y"
    assert Guard.preflight("POST", asked) is None and Guard.preflight("OPTIONS", heads(origin="https://a")) is None


KEYED = Guard(Settings(api_keys=("one", "zwei-\u00e9".encode().decode("latin-1"), "three")))


@pytest.mark.parametrize(
    ("given", "ok"),
    [
        ({"authorization": "Bearer one"}, True),
        ({"authorization": "bearer  three"}, True),
        ({"x_api_key": "one"}, True),
        ({"x_api_key": "one", "authorization": "Bearer one"}, True),
        ({}, False),
        ({"authorization": ""}, False),
        ({"authorization": "Bearer"}, False),
        ({"authorization": "Bearer "}, False),
        ({"authorization": "one"}, False),
        ({"authorization": "Basic one"}, False),
        ({"authorization": "Bearer on"}, False),
        ({"authorization": "Bearer onee"}, False),
        ({"authorization": "Bearer One"}, False),
        ({"authorization": "Bearer one,three"}, False),
        ({"authorization": ["Bearer one", "Bearer one"]}, False),
        ({"authorization": ["Bearer wrong", "Bearer one"]}, False),
        ({"x_api_key": ["one", "one"]}, False),
        ({"x_api_key": ""}, False),
        ({"x_api_key": "one", "authorization": "Bearer three"}, False),
        ({"x_api_key": "one", "authorization": "Bearer wrong"}, False),
        ({"x_api_key": "wrong", "authorization": "Bearer one"}, False),
        ({"x_api_key": "\u00ff\u0000"}, False),
    ],
)
def test_keys(given: dict[str, str | list[str]], ok: bool):
    assert status(KEYED.tenant, heads(**given)) == (200 if ok else 401)
    assert status(Guard(Settings()).tenant, heads(**given)) == 200, "without keys, none is looked at"


def test_tenants_are_names_of_keys_that_tell_nothing():
    names = {key: KEYED.tenant(heads(x_api_key=key)) for key in ("one", "three")}
    assert len(set(names.values())) == 2 and all(len(name) == 16 for name in names.values())
    assert "one" not in names.values() and Guard(Settings()).tenant([]) == ""
    assert Guard(Settings(api_keys=("three",))).tenant(heads(x_api_key="three")) == names["three"], (
        "whatever other keys there are"
    )
    assert "one" not in repr(vars(KEYED)) and "one" not in repr(Settings(api_keys=("one",)))


def leaks(text: str) -> list[str]:
    """What a comparison of keys must not have: == and `in` on digests, and a way out of the loop over all of them."""
    tree = ast.parse(text)
    found = ["compares by itself" for node in ast.walk(tree) if isinstance(node, ast.Compare)]
    for loop in (node for node in ast.walk(tree) if isinstance(node, ast.For)):
        found += ["leaves the loop" for node in ast.walk(loop) if isinstance(node, ast.Return | ast.Break)]
    return found


def test_keys_are_compared_in_constant_time():
    source = textwrap.dedent(inspect.getsource(guard.Guard._match))
    assert "compare_digest" in source and leaks(source) == []
    assert leaks("def f(a, b):\n    for k in a:\n        if k == b:\n            return k") == [
        "compares by itself",
        "leaves the loop",
    ]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("req-1.2:3/4_x", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("", False),
        ("a b", False),
        ("a\tb", False),
        ('a"b', False),
        ("\u00e9", False),
        (["a", "b"], False),
    ],
)
def test_request_ids(given: str | list[str], kept: bool):
    found = request_id(heads(x_request_id=given))
    assert (found == given) is kept and len(found) in (len(given), 32) and found.isascii()
