"""Structural tags as a grammar, in the dialect of Lark that llguidance reads: free text, and in it tags that hold to schemas.

Free text is a lexeme that ends with the first mark in it (`[lazy]`), so what follows the mark is no longer free. A mark that
begins with a special token of the tokenizer may come as that token, too. Knows neither requests nor matchers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shardwise.sched.structural_tag import (
    AnyText,
    Either,
    Exactly,
    Format,
    Json,
    Matching,
    Row,
    Separated,
    Tag,
    Times,
    Triggered,
)


def tag_grammar(
    tag: Format, specials: Mapping[str, int], json_rule: Callable[[Mapping[str, Any]], str], regex: Callable[[str], str]
) -> str:
    """The grammar of an answer. `specials`: ids of special tokens by their texts. `json_rule` and `regex` write what a schema
    and a regular expression are in a grammar."""
    writer = _Writer(specials, json_rule, regex)
    start = writer.format(tag, ())
    return "\n".join([f"start: {start}", *writer.rules, "ANY: /(?s:.*)/"]) + "\n"


class _Writer:
    """Expressions, and the rules that they need."""

    def __init__(
        self, specials: Mapping[str, int], json_rule: Callable[[Mapping[str, Any]], str], regex: Callable[[str], str]
    ) -> None:
        self.rules: list[str] = []
        self._specials, self._json, self._regex = specials, json_rule, regex
        found = sorted(specials, key=len, reverse=True)
        self._special = re.compile(f"({'|'.join(map(re.escape, found))})") if found else None
        self._texts: dict[tuple[str, ...], str] = {(): "ANY"}

    def format(self, one: Format, ends: tuple[str, ...]) -> str:
        """The format, and one of `ends` behind it. Without any, what has no end of its own goes on to the end of the answer."""
        match one:
            case AnyText(excludes):
                return self._either(self._up_to(ends, ends, excludes)) if ends else self._without(excludes)
            case Triggered():
                return self._triggered(one, ends)
            case Row(parts):
                *first, last = parts
                return " ".join([*(self.format(each, ()) for each in first), self.format(last, ends)])
            case Either(options):
                return self._either([self.format(each, ends) for each in options])
        close = self._either([self._mark(each) for each in ends])
        return f"{self._bounded(one)} {close}" if ends else self._bounded(one)

    def _bounded(self, one: Format) -> str:
        match one:
            case Exactly(text):
                return self._mark(text)
            case Json(schema):
                return self._rule("json", self._json(schema))
            case Matching(regex):
                return self._rule("REGEX", self._regex(regex))
            case Times(content, least, most):
                return f"({self.format(content, ())}){{{least},{'' if most is None else most}}}"
            case Tag(begin, content, ends):
                return f"{self._mark(begin)} {self.format(content, ends)}"
            case Separated(tags, separator, least_one, only_one):
                tag = self._rule("tag", self._either([self._bounded(each) for each in tags]))
                row = tag if only_one else f"{tag} ({self._mark(separator)} {tag})*"
                return f"({row})" if least_one else f"({row})?"
        raise AssertionError(f"{type(one).__name__} has an end")

    def _triggered(self, one: Triggered, ends: tuple[str, ...]) -> str:
        """Triggers that come up in text each lead to the rest of their tags."""
        marks, dispatched = (*one.triggers, *ends), []
        for trigger in one.triggers:
            tags = [each for each in one.tags if each.begin.startswith(trigger)]
            rests = [Tag(each.begin.removeprefix(trigger), each.content, each.ends) for each in tags]
            rest = self._rule("rest", self._either([self._bounded(each) for each in rests]))
            dispatched += [f"{head} {rest}" for head in self._up_to([trigger], marks, one.excludes)]
        later = self._rule("tag", self._either(dispatched))
        tail = self._either(self._up_to(ends, marks, one.excludes)) if ends else self._without((*marks, *one.excludes))
        close = self._either([self._mark(each) for each in ends]) if ends else ""
        first = self._either([self._bounded(each) for each in one.tags]) if one.least_one else ""
        if one.only_one:
            return f"{first} {close}" if one.least_one else self._either([f"{later} {close}", tail])
        return f"{first} {later}* {tail}"

    # --- text -----------------------------------------------------------------------------------------------------

    def _up_to(self, wanted: Sequence[str], marks: Sequence[str], excludes: tuple[str, ...]) -> list[str]:
        """Ways to write text that ends with one of `wanted`, and has none of `marks` before."""
        free = self._without(excludes)
        found = [self._rule("text", f"{free} {self._either([_literal(each) for each in wanted])}", "[lazy]")]
        for each in wanted:
            if self._special and (special := self._special.match(each)):
                rest = each[special.end() :]
                token = f"<[{self._specials[special[0]]}]>"
                found.append(f"{self._without((*marks, *excludes))} {token} {self._mark(rest)}")
        return found

    def _without(self, texts: tuple[str, ...]) -> str:
        """Text in which none of these comes up."""
        key = tuple(dict.fromkeys(texts))
        if key not in self._texts:
            among = self._either([_literal(each) for each in key])
            self._texts[key] = self._rule("TEXT", f"ANY & ~(ANY {among} ANY)")
        return self._texts[key]

    def _mark(self, text: str) -> str:
        """The text, special tokens in it as such or spelled."""
        if not self._special:
            return _literal(text)
        parts = [each for each in self._special.split(text) if each]
        ids = [self._specials.get(each) for each in parts]
        found = [_literal(p) if i is None else f"({_literal(p)} | <[{i}]>)" for p, i in zip(parts, ids, strict=True)]
        return " ".join(found) or _literal("")

    def _either(self, options: Sequence[str]) -> str:
        return options[0] if len(options) == 1 else f"({' | '.join(options)})"

    def _rule(self, kind: str, body: str, mode: str = "") -> str:
        """The name of a new rule."""
        name = f"{kind}_{len(self.rules)}"
        self.rules.append(f"{name}{mode}: {body}")
        return name


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
