"""What an answer must look like: JSON of a schema, a regular expression, one of a few texts, a grammar, or text with tags.

A plain value, checked in form and size. Whether it compiles only a tokenizer's bytes and a parser can say: `engine/grammar.py`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from shardwise.errors import RequestError
from shardwise.sched.checks import flag, shown, strings
from shardwise.sched.given_json import check_size, object_given, written
from shardwise.sched.structural_tag import tag_text

MAX_REGEX_BYTES = 32 * 2**10
MAX_GRAMMAR_BYTES = 128 * 2**10
MAX_CHOICES = 1024
MAX_CHOICE_CHARS = 4096
MAX_CHOICES_BYTES = 256 * 2**10
_FLAG = "json_object"  # the one field that is a flag


@dataclass(frozen=True, slots=True)
class StructuredOutputs:
    """What the whole of an answer must be; exactly one field is set. Names and meanings as vLLM's StructuredOutputsParams.

    `json`: a JSON schema, as an object or its text; kept as text, its keys in their order, which is also the order that the
    answer has them in. `json_object`: any JSON object. `regex`: the answer matches it from its first character to its last.
    `choice`: the answer is one of these. `grammar`: Lark as llguidance has it, or GBNF as llama.cpp (`root ::= ...`).
    `structural_tag`: free text with tags that hold to schemas, `{"structures": ..., "triggers": ...}` or `{"format": ...}` as
    `sched/structural_tag.py` reads them, as an object or its text; kept as text.

    `opening` is not for requests to set: Lark with a rule of this name, for what stands before all that, such as reasoning.
    Nor is `name`: the field that the client sent where it is not one of these, for messages; it makes no difference else.

    RequestError for none, for several, and for what is too large: `MAX_...` above.
    """

    json: str | Mapping[str, object] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool = False
    structural_tag: str | Mapping[str, object] | None = None
    opening: str | None = None
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        given = [name for name in KINDS if getattr(self, name) not in (None, False)]
        flag(self.name or f"structured_outputs.{_FLAG}", getattr(self, _FLAG))
        if len(given) != 1:
            found = "says nothing" if not given else f"has {' and '.join(given)}"
            raise RequestError(f"{self.name or 'structured_outputs'} {found}; it takes exactly one of {', '.join(KINDS)}")
        if self.json is not None:
            schema = object_given(self.said, self.json, "a JSON schema, which is an object")
            object.__setattr__(self, "json", written(self.said, schema))
        if self.regex is not None:
            check_size(self.said, self.regex, MAX_REGEX_BYTES)
        if self.grammar is not None:
            check_size(self.said, self.grammar, MAX_GRAMMAR_BYTES)
        if self.choice is not None:
            object.__setattr__(self, "choice", _choices(self.said, self.choice))
        if self.structural_tag is not None:
            object.__setattr__(self, "structural_tag", tag_text(self.said, self.structural_tag))

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


def _choices(name: str, value: object) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(strings(name, value, MAX_CHOICES, MAX_CHOICE_CHARS)))
    if not found:
        raise RequestError(f"{name} is empty; name at least one text")
    if (size := sum(len(text.encode()) for text in found)) > MAX_CHOICES_BYTES:
        raise RequestError(f"{name} has {size} bytes in all; it takes at most {MAX_CHOICES_BYTES}")
    return found
