"""A server of OpenAI's API as a terminal asks it: one question at a time, the answer as it comes.

Knows server-sent events, not what is asked. Closing an answer ends its request.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Generator, Mapping
from contextlib import closing
from typing import Any

from shardwise import env
from shardwise.cli import flags
from shardwise.errors import ShardwiseError, TooLong, UserError
from shardwise.verify.client import Client, complaint, worded

LIMIT_BYTES = 16 * 2**20
"""The longest line, and the longest answer that is no stream."""


FULL = b"maximum context length"
"""In the refusals of OpenAI's API, vLLM's and this one, where a prompt is too long."""


class Server:
    """The server that a client asks."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def url(self) -> str:
        return self._client.url

    def model(self) -> str:
        """The first model that it serves."""
        with closing(self._ask("models", None)) as found:
            answer = next(found, {})
        try:
            return str(answer["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise ShardwiseError(f"{self._client.at('models')} lists no model; give its name") from None

    def stream(self, path: str, body: Mapping[str, Any]) -> Generator[dict[str, Any], None, None]:
        """What comes of a POST of `body` at /v1/`path`, chunk by chunk; a server that does not stream gives one. UserError
        where the server refuses it, TooLong where that is for its length, ShardwiseError where it fails."""
        return self._ask(path, json.dumps({**body, "stream": True}).encode())

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a POST of `body` at /v1/`path`. Raises as `stream`."""
        with closing(self._ask(path, json.dumps(body).encode())) as found:
            return next(found)

    def _ask(self, path: str, body: bytes | None) -> Generator[dict[str, Any], None, None]:
        where = self._client.at(path)
        with self._client.answer(path, body) as answer:
            if answer.status != 200:
                raise _refused(where, answer)
            if answer.headers.get_content_type() == "text/event-stream":
                yield from _chunks(where, answer)
            else:
                yield _object(where, answer.read(LIMIT_BYTES))


def add_url(parser: flags.Parser, default: str | None) -> None:
    """The flags that name a server."""
    group = parser.add_argument_group("a server")
    text = f"ask a server of OpenAI's API at this address (default: {default})" if default else "ask a server at this address"
    group.add_argument("--url", metavar="URL", default=default, help=text)
    group.add_argument("--api-key", metavar="KEY", help=f"the server's key (default: the variable {env.API_KEY})")


def server(url: str, key: str | None) -> Server:
    """The server that the flags name. UserError where they cannot be used."""
    return Server(Client(url, key or env.api_key(), flag="--url"))


def _chunks(where: str, answer: http.client.HTTPResponse) -> Generator[dict[str, Any], None, None]:
    """The objects of a stream of events, up to [DONE] or its end."""
    data: list[bytes] = []
    whole = False
    while line := answer.readline(LIMIT_BYTES):
        line = line.rstrip(b"\r\n")
        if line.startswith(b"data:"):
            data.append(line[5:].strip())
        elif not line and data:
            text, data = b"\n".join(data), []
            if text == b"[DONE]":
                return
            found = _object(where, text)
            whole = whole or any(choice.get("finish_reason") for choice in found.get("choices") or ())
            yield found
    if not whole:
        raise ShardwiseError(f"{where} broke off before the end of its answer; has the server been stopped?")


def _object(where: str, data: bytes) -> dict[str, Any]:
    """ShardwiseError where it is none, or tells of an error, whatever the status was."""
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ShardwiseError(f"{where} answered with what is no JSON object; does it speak OpenAI's API?")
    if found.get("error"):
        raise ShardwiseError(f"{where} failed: {worded(found)}")
    return found


def _refused(where: str, answer: http.client.HTTPResponse) -> ShardwiseError:
    """What a status other than 200 says: the user's to mend, or not."""
    try:
        data = answer.read(2**16)
    except (OSError, http.client.HTTPException):
        data = b""  # the status says enough
    said = complaint(data)
    text = f"{where} answered {answer.status}: {said or answer.reason}"
    if answer.status in (401, 403):
        text += f"; give --api-key KEY, or set {env.API_KEY}"
    if again := answer.headers.get("Retry-After"):
        text += f"; try again in {again} s"
    if answer.status == 400 and FULL in data:
        return TooLong(text)
    return UserError(text) if answer.status < 500 and answer.status != 429 else ShardwiseError(text)
