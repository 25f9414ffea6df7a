"""A server of OpenAI's API as a terminal asks it: one question at a time, the answer as it comes. Standard library only.

Knows HTTP and server-sent events, not what is asked. Closing an answer ends its request.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import ssl
from collections.abc import Generator, Mapping
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from shardwise import env
from shardwise.cli import flags
from shardwise.errors import ShardwiseError, UserError

URL = "http://127.0.0.1:8000"
"""Where `shardwise serve` listens, unless told."""

CONNECT_S = 10.0
SILENCE_S = 600.0
"""The longest that is waited for a next byte: a large model on a CPU takes its time."""

LIMIT_BYTES = 16 * 2**20
"""The longest line, and the longest answer that is no stream."""


class Server:
    """The server at `url`, an address with or without /v1. `key` goes to that address and nowhere else."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """UserError where the address is none, or the key cannot be sent."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise UserError(f"--url {url!r} is no address: {error}; it takes one such as {URL}") from None
        if "://" not in url and re.fullmatch(r"[\w.\[\]:-]+(/.*)?", url):
            raise UserError(f"--url {url!r} has no http:// or https:// before it; did you mean http://{url}?")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise UserError(f"--url {url!r} is no address; it takes one such as {URL} or https://host/v1")
        if parts.username is not None or parts.password is not None:
            raise UserError("--url holds a name or a password; leave them out, and give --api-key")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise UserError("--api-key must be printable ASCII; check how it was copied")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, port
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"Accept": "text/event-stream, application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    def model(self) -> str:
        """The first model that it serves."""
        with closing(self._ask("models", None)) as found:
            answer = next(found, {})
        try:
            return str(answer["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise ShardwiseError(f"{self.url}/v1/models lists no model; give its name") from None

    def stream(self, path: str, body: Mapping[str, Any]) -> Generator[dict[str, Any], None, None]:
        """What comes of a POST of `body` at /v1/`path`, chunk by chunk; a server that does not stream gives one. UserError
        where the server refuses it, ShardwiseError where it fails."""
        return self._ask(path, json.dumps({**body, "stream": True}).encode())

    def _ask(self, path: str, body: bytes | None) -> Generator[dict[str, Any], None, None]:
        where = f"{self.url}/v1/{path}"
        connection = self._connect(where)
        try:
            headers = self._headers if body is None else {**self._headers, "Content-Type": "application/json"}
            connection.request("GET" if body is None else "POST", f"{self._path}/v1/{path}", body, headers)
            answer = connection.getresponse()
            if answer.status != 200:
                raise _refused(where, answer)
            if answer.headers.get_content_type() == "text/event-stream":
                yield from _chunks(where, answer)
            else:
                yield _object(where, answer.read(LIMIT_BYTES))
        except TimeoutError:
            raise ShardwiseError(f"{where} has said nothing for {SILENCE_S:g} s; is it overloaded?") from None
        except (OSError, http.client.HTTPException) as error:
            raise ShardwiseError(f"{where} broke off: {type(error).__name__}: {error}") from None
        finally:
            connection.close()

    def _connect(self, where: str) -> http.client.HTTPConnection:
        made: http.client.HTTPConnection
        if self._secure:
            context = ssl.create_default_context()
            made = http.client.HTTPSConnection(self._host, self._port, timeout=CONNECT_S, context=context)
        else:
            made = http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_S)
        try:
            made.connect()
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if isinstance(error, ssl.SSLError) and "WRONG_VERSION" in str(error):
                raise UserError(f"{where} speaks no TLS: use http:// in --url") from None
            raise UserError(
                f"{where} cannot be reached: {reason}; `shardwise serve` starts a server, --url names another one"
            ) from None
        made.sock.settimeout(SILENCE_S)
        return made


def add_url(parser: flags.Parser, default: str | None) -> None:
    """The flags that name a server."""
    group = parser.add_argument_group("a server")
    text = f"ask a server of OpenAI's API at this address (default: {default})" if default else "ask a server at this address"
    group.add_argument("--url", metavar="URL", default=default, help=text)
    group.add_argument("--api-key", metavar="KEY", help=f"the server's key (default: the variable {env.API_KEY})")


def server(url: str, key: str | None, environ: Mapping[str, str] = os.environ) -> Server:
    """The server that the flags name."""
    # The variable may hold the list that `shardwise serve` takes.
    return Server(url, key or (env.api_key(environ) or "").split(",")[0].strip() or None)


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
            if found.get("error"):
                raise ShardwiseError(f"{where} failed: {_message(found)}")
            yield found
    if not whole:
        raise ShardwiseError(f"{where} broke off before the end of its answer; has the server been stopped?")


def _object(where: str, data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ShardwiseError(f"{where} answered with what is no JSON object; does it speak OpenAI's API?")
    return found


def _refused(where: str, answer: http.client.HTTPResponse) -> ShardwiseError:
    """What a status other than 200 says: the user's to mend, or not."""
    try:
        found = json.loads(answer.read(2**16))
    except (ValueError, OSError, http.client.HTTPException):
        found = {}
    text = f"{where} answered {answer.status}: {_message(found) or answer.reason}"
    if answer.status in (401, 403):
        text += f"; give --api-key KEY, or set {env.API_KEY}"
    if again := answer.headers.get("Retry-After"):
        text += f"; try again in {again} s"
    return UserError(text) if answer.status < 500 and answer.status != 429 else ShardwiseError(text)


def _message(found: object) -> str:
    """The message of an error, in OpenAI's shape or one near to it; of one line."""
    error = found.get("error", found) if isinstance(found, dict) else found
    said = error.get("message", error.get("detail", "")) if isinstance(error, dict) else error
    return re.sub(r"\s+", " ", said if isinstance(said, str) else "")[:1000]
