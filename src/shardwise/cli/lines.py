"""Files of requests, a JSON object a line: what each line asks for, or why it cannot be asked. Runs nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

from shardwise.cli.flags import MAX_TOKENS
from shardwise.engine.complete import Prompt
from shardwise.engine.front import Front
from shardwise.errors import RequestError, UserError
from shardwise.sched.checks import check_text, shown
from shardwise.sched.fields import sampling_fields
from shardwise.sched.request import SamplingParams

LIMIT_BYTES = 16 * 2**20
"""A line may have so many; no context holds more."""

KINDS = ("prompt", "prompt_token_ids", "messages")
OPENAI = ("custom_id", "method", "url", "body")
CHAT = {
    "add_generation_prompt": "add_generation_prompt", "continue_final_message": "continue_final_message",
    "tools": "tools", "chat_template_kwargs": "variables",
}  # fmt: skip
"""Fields of a conversation, and what `ChatTemplate.render` calls them."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds for every line that does not say otherwise. `chat`: a "prompt" is a question, after `system`."""

    model: str
    sampling: Mapping[str, Any]
    chat: bool = False
    system: str | None = None

    def stamp(self) -> bytes:
        """The same for two runs whose lines mean the same."""
        return json.dumps([self.model, sorted(self.sampling.items()), self.chat, self.system]).encode()


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file, counted from 1. `digest` stands for its text and what holds besides it."""

    number: int
    digest: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Asked:
    """What a line asks for. `params` has a seed."""

    id: str | int
    prompt: Prompt
    params: SamplingParams


def read_lines(file: BinaryIO, defaults: Defaults) -> Iterator[Line]:
    """The lines that are not blank. One that is too long comes cut, and is for `ask` to refuse."""
    stamp, number = hashlib.sha256(defaults.stamp()), 0
    while data := file.readline(LIMIT_BYTES + 1):
        number += 1
        rest = data
        while len(rest) > LIMIT_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(LIMIT_BYTES + 1)
        if not (data := data.strip(b" \t\r\n")):
            continue
        digest = stamp.copy()
        digest.update(data)
        yield Line(number, digest.hexdigest()[:16], data)


def identity(line: Line) -> str | int:
    """The id that a line gives itself, else its number; for a line that cannot be read, too."""
    try:
        return _identity(_object(line), line)
    except RequestError:
        return line.number


def ask(line: Line, front: Front, defaults: Defaults, seed: int) -> Asked:
    """What the line asks for, with `seed` if it names none. RequestError for whatever is wrong with it."""
    given = _object(line)
    name = _identity(given, line)
    body = _body(given)
    kinds = [kind for kind in KINDS if body.get(kind) is not None]
    if len(kinds) != 1:
        raise RequestError(f"it has {' and '.join(kinds) or 'no prompt'}; give one of {', '.join(KINDS)}")
    [kind] = kinds
    options = {CHAT[key]: value for key, value in body.items() if key in CHAT and value is not None}
    value = body[kind]
    if kind == "messages" or (defaults.chat and kind == "prompt"):
        prompt = front.chat(value if kind == "messages" else _question(value, defaults), "messages", **options)
    elif options:
        raise RequestError(f"{next(key for key in body if key in CHAT)} is for conversations; give messages")
    else:
        # OpenAI's "prompt" may be token ids; lists of prompts would be several requests.
        prompt = front.prompt(value, kind)
    fields = sampling_fields({key: value for key, value in body.items() if key not in (*KINDS, *CHAT, "id")})
    wanted = {**_room(prompt, front), "seed": seed, **defaults.sampling, **fields}
    if "max_tokens" not in {**defaults.sampling, **fields}:
        least = wanted.get("min_tokens")
        wanted["max_tokens"] = max(wanted["max_tokens"], least) if type(least) is int else wanted["max_tokens"]
    return Asked(name, prompt, SamplingParams(**wanted))


def _room(prompt: Prompt, front: Front) -> dict[str, Any]:
    return {"max_tokens": max(1, min(MAX_TOKENS, front.core.setup.context - len(prompt.ids)))}


def _question(text: object, defaults: Defaults) -> list[dict[str, object]]:
    system: list[dict[str, object]] = [{"role": "system", "content": defaults.system}] if defaults.system else []
    return [*system, {"role": "user", "content": text}]


def _object(line: Line) -> dict[str, Any]:
    """The object that the line holds."""
    if len(line.data) > LIMIT_BYTES:
        raise RequestError(f"it is longer than {LIMIT_BYTES >> 20} MiB; no context holds that")
    try:
        text = line.data.decode("utf-8-sig" if line.number == 1 else "utf-8")
        found = json.loads(text, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise RequestError(f"it is not UTF-8: byte {error.start} is 0x{line.data[error.start]:02X}") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"it is not valid JSON ({error}); a JSON object a line is wanted") from None
    if not isinstance(found, dict):
        raise RequestError(f"it is {shown(found)}; a JSON object a line is wanted")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _identity(given: dict[str, Any], line: Line) -> str | int:
    """`id`, or `custom_id` as in OpenAI's batches."""
    name = given.get("custom_id", given.get("id"))
    if name is None:
        return line.number
    if isinstance(name, str):
        check_text(name, "id")
        return name
    if isinstance(name, int) and not isinstance(name, bool):
        return name
    raise RequestError(f"id is {shown(name)}; it takes a string or a whole number")


def _body(given: dict[str, Any]) -> dict[str, Any]:
    """The request itself, which OpenAI's batches wrap."""
    if "body" not in given:
        return given
    other = next((key for key in given if key not in OPENAI), None)
    if other is not None:
        raise RequestError(f"unknown field {shown(other)} beside body; {', '.join(OPENAI)} are known")
    if not isinstance(given["body"], dict):
        raise RequestError(f"body is {shown(given['body'])}; an object is wanted")
    return dict(given["body"])


def open_lines(path: str) -> BinaryIO:
    """The file; UserError where it cannot be opened."""
    try:
        return open(path, "rb")  # noqa: PTH123 - the caller closes it
    except OSError as error:
        raise UserError(f"--input {path}: {error.strerror}; give a file with a JSON object a line") from None
