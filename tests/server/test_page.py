"""The page of the documents: every command on it works when copied, every link leads somewhere."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from shardwise.engine.engine import Engine
from shardwise.engine.setup import Options, resolve
from shardwise.server.docs import curl, markdown
from shardwise.server.page import documents, page
from shardwise.server.routes import ROUTES
from shardwise.server.settings import Settings
from tests.server.drive import Served, serving

ALL = (*ROUTES, *documents(ROUTES, Settings()))
PAGE = page(ALL, Settings())
ON_PAGE = [html.unescape(found) for found in re.findall(r"<pre><code>(.*?)</code></pre>", PAGE, re.DOTALL)]
IN_MARKDOWN = re.findall(r"^```\n(curl.*?)\n```$", markdown(ROUTES), re.DOTALL | re.MULTILINE)
SCRIPT = (Path(__file__).parents[2] / "examples" / "curl.sh").read_text().replace('"$URL"', "http://127.0.0.1:8000")
IN_SCRIPT = [part.partition("\n")[2] for part in SCRIPT.split("\n\n") if part.partition("\n")[2].startswith("curl ")]
COMMANDS = list(dict.fromkeys(ON_PAGE + IN_MARKDOWN + IN_SCRIPT))


class Real(Engine):
    """An engine in this process takes all requests. Its ranks are none of its threads: they can be cut anew."""

    lost: str | None = None

    async def admitted(self, request: int) -> None: ...


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with Real(resolve(Options("shardling", device="cpu")), "processes") as engine, serving(engine, ROUTES) as made:
        yield made


def asked(command: str) -> tuple[str, dict[str, str], str | None]:
    """(path, headers, body) of a curl command, as a shell splits it."""
    words = iter(shlex.split(command.replace("\\\n", " ")))  # as a shell joins lines
    assert next(words) == "curl"
    path, headers, body = "", {}, None
    for word in words:
        if word == "-H":
            name, _, value = next(words).partition(": ")
            headers[name.lower()] = value
        elif word == "-d":
            body = next(words)
        elif word not in ("-N", "-fsS", "-fsSN"):
            assert word.startswith("http://127.0.0.1:8000/"), word
            path = urlsplit(word).path
    return path, headers, body


def test_there_are_commands_for_what_takes_a_body():
    assert {asked(command)[0] for command in COMMANDS} >= {route.paths[0] for route in ROUTES if route.body is not None}
    assert len(COMMANDS) > 30 and len(IN_SCRIPT) == SCRIPT.count("\ncurl ")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{COMMANDS.index(command)}{asked(command)[0]}")
def test_a_command_works_when_it_is_copied(served: Served, command: str):
    path, headers, body = asked(command)
    answer = served.get(path) if body is None else served.ask("POST", path, body.encode(), headers)
    assert answer.status == 200, answer.body[:500]
    assert answer.body and b'"error": {' not in answer.body


def test_every_link_leads_somewhere(served: Served):
    places = re.findall(r" id='?([^' >]+)", PAGE)
    assert len(places) == len(set(places))
    links = set(re.findall(r"href='([^']*)'", PAGE))
    assert {link[1:] for link in links if link.startswith("#")} <= set(places)
    assert [link for link in links if link[0] != "#" and served.get(link).status != 200] == []


def test_a_browser_that_asks_for_the_root_gets_the_page(served: Served):
    answer = served.get("/")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert served.get("/docs").body == answer.body
    for route in ROUTES:
        assert f">{html.escape(route.paths[0])}<" in answer.body.decode()


@pytest.mark.parametrize(("host", "where"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("", "127.0.0.1")])
def test_commands_name_an_address_that_can_be_asked(host: str, where: str):
    assert curl("/v1/models", None, Settings(host=host, port=81)) == f"curl http://{where}:81/v1/models"


def test_commands_of_a_server_with_a_key_bring_it():
    commands = re.findall(r"<pre><code>(.*?)</code></pre>", page(ALL, Settings(api_keys=("k",))), re.DOTALL)
    assert len(commands) == len(ON_PAGE)
    assert all(asked(html.unescape(command))[1]["authorization"] == "Bearer KEY" for command in commands)
