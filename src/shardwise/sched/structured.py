"""What an answer must look like: JSON of a schema, a regular expression, one of a few texts, or a grammar.

A plain value, checked in form and size. Whether it compiles only a tokenizer's bytes and a parser can say: `engine/grammar.py`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import NoReturn

from shardwise.errors import RequestError
from shardwise.sched.checks import check_text, flag, shown, strings

MAX_SCHEMA_BYTES = 256 * 2**10
MAX_SCHEMA_DEPTH = 64
MAX_REGEX_BYTES = 32 * 2**10
MAX_GRAMMAR_BYTES = 128 * 2**10
MAX_CHOICES = 1024
MAX_CHOICE_CHARS = 4096
MAX_CHOICES_BYTES = 256 * 2**10


@dataclass(frozen=True, slots=True)
class StructuredOutputs:
    """What the whole of an answer must be; exactly one field is set. Names and meanings as vLLM's StructuredOutputsParams.

    `json`: a JSON schema, as an object or its text; kept as text, its keys in their order, which is also the order that the
    answer has them in. `json_object`: any JSON object. `regex`: the answer matches it from its first character to its last.
    `choice`: the answer is one of these. `grammar`: Lark as llguidance has it, or GBNF as llama.cpp (`root ::= ...`).

    `opening` is not for requests to set: Lark with a rule of this name, for what stands before all that, such as reasoning.
    Nor is `name`: the field that the client sent where it is not one of these, for messages; it makes no difference else.

    RequestError for none, for several, and for what is too large: `MAX_...` above.
    """

    json: str | Mapping[str, object] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool = False
    opening: str | None = None
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        given = [name for name in KINDS if getattr(self, name) not in (None, False)]
        flag(self.name or f"structured_outputs.{KINDS[-1]}", getattr(self, KINDS[-1]))
        if len(given) != 1:
            found = "says nothing" if not given else f"has {' and '.join(given)}"
            raise RequestError(f"{self.name or 'structured_outputs'} {found}; it takes exactly one of {', '.join(KINDS)}")
        if self.json is not None:
            object.__setattr__(self, "json", _schema(self.said, self.json))
        if self.regex is not None:
            _check_size(self.said, self.regex, MAX_REGEX_BYTES)
        if self.grammar is not None:
            _check_size(self.said, self.grammar, MAX_GRAMMAR_BYTES)
        if self.choice is not None:
            object.__setattr__(self, "choice", _choices(self.said, self.choice))

    @property
    def kind(self) -> str:
        """The name of the field that is set."""
        return next(name for name in KINDS if getattr(self, name) not in (None, False))

    @property
    def said(self) -> str:
        """What messages call it."""
        return self.name or f"structured_outputs.{self.kind}"


KINDS = tuple(each.name for each in fields(StructuredOutputs) if each.name not in ("opening", "name"))


def structured(value: object, name: str = "structured_outputs") -> StructuredOutputs | None:
    """One of these, out of itself or of a mapping with its fields; None out of None. RequestError for all else."""
    if value is None or isinstance(value, StructuredOutputs):
        return value
    if not isinstance(value, Mapping):
        raise RequestError(f"{name} is {shown(value)}; it takes an object with one of {', '.join(KINDS)}")
    asked = {key: each for key, each in value.items() if key in KINDS or each not in (None, False)}
    for key in asked:
        if key not in KINDS:
            near = difflib.get_close_matches(str(key), KINDS, n=1)
            hint = f", nearest: {near[0]}" if near else f"; it takes one of {', '.join(KINDS)}"
            raise RequestError(f"{name} has no {shown(key)}{hint}")
    return StructuredOutputs(**asked)


def _check_size(name: str, text: object, most: int) -> None:
    """RequestError for what is no text, is empty, or has more than `most` bytes of UTF-8."""
    check_text(text, name)
    assert isinstance(text, str)
    if not text:
        raise RequestError(f"{name} is empty; leave it out to allow any answer")
    if (size := len(text.encode())) > most:
        raise RequestError(f"{name} has {size} bytes; it takes at most {most}")


def _choices(name: str, value: object) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(strings(name, value, MAX_CHOICES, MAX_CHOICE_CHARS)))
    if not found:
        raise RequestError(f"{name} is empty; name at least one text")
    if (size := sum(len(text.encode()) for text in found)) > MAX_CHOICES_BYTES:
        raise RequestError(f"{name} has {size} bytes in all; it takes at most {MAX_CHOICES_BYTES}")
    return found


def _schema(name: str, value: object) -> str:
    """The schema as JSON text; of a text its meaning, so that what two parsers may read in two ways does not get in."""
    if isinstance(value, str):
        _check_size(name, value, MAX_SCHEMA_BYTES)
        try:
            value = json.loads(value, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            reason = "is nested too deep" if isinstance(error, RecursionError) else f"is not JSON: {error}"
            raise RequestError(f"{name} {reason}") from None
    if not isinstance(value, Mapping):
        raise RequestError(f"{name} is {shown(value)}; it takes a JSON schema, which is an object")
    _check_plain(value, name)
    text = json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"))
    _check_size(name, text, MAX_SCHEMA_BYTES)
    return text


def _plain(value: object) -> object:
    """With dicts and lists for all mappings and sequences."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _check_plain(value: object, name: str, depth: int = 1) -> None:
    """RequestError for what JSON does not hold, for numbers that no parser takes, and for too many levels."""
    if depth > MAX_SCHEMA_DEPTH:
        raise RequestError(f"{name} is nested more than {MAX_SCHEMA_DEPTH} levels deep")
    if isinstance(value, Mapping):
        for key, each in value.items():
            check_text(key, f"a key of {name}")
            _check_plain(each, name, depth + 1)
    elif isinstance(value, list | tuple):
        for each in value:
            _check_plain(each, name, depth + 1)
    elif isinstance(value, str):
        check_text(value, f"a text in {name}")
    elif isinstance(value, float) and not abs(value) < float("inf"):
        raise RequestError(f"{name} has {value}, which JSON does not")
    elif isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        raise RequestError(f"{name} has {shown(value)}; whole numbers in it take at most 63 bits")
    elif value is not None and not isinstance(value, bool | int | float):
        raise RequestError(f"{name} holds {shown(value)}; JSON has objects, lists, texts, numbers, true, false, null")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
