"""Structural tags over the bundled vocabulary: free text stays free, and a tag that has begun holds to its schema."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest

from shardwise.engine.grammar import Grammar, Grammars
from shardwise.engine.grammar_check import GrammarCheck
from shardwise.engine.hub import bundled
from shardwise.engine.text import Tokenizer, open_tokenizer
from shardwise.errors import RequestError
from shardwise.sched.structured import StructuredOutputs

VOCAB = 4096
END = 6
CITY = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
WORD = {"enum": ["up", "down"]}
STRUCTURES = [
    {"begin": "<f=one>", "schema": CITY, "end": "</f>"},
    {"begin": "<f=two>", "schema": WORD, "end": "</f>"},
    {"begin": "@go", "schema": WORD, "end": ""},
]
OLD: dict[str, Any] = {"structures": STRUCTURES, "triggers": ["<f=", "@"]}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return open_tokenizer(bundled())


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(bundled(), VOCAB)


def compiled(grammars: Grammars, tag: Any, **more: str) -> Grammar:
    return grammars.compile(StructuredOutputs(structural_tag=tag, **more))  # type: ignore[arg-type]


def spelled(tokenizer: Tokenizer, text: str) -> list[int]:
    """Character by character; the text of a special token becomes that token."""
    parts = re.split(r"(<\|[a-z]+\|>)", text)
    special = [part.startswith("<|") and tokenizer.token_id(part) is not None for part in parts]
    cut = [[part] if whole else list(part) for part, whole in zip(parts, special, strict=True)]
    return [i for each in cut for c in each for i in tokenizer.encode(c, add_special_tokens=False)]


def state(tokenizer: Tokenizer, grammar: Grammar, text: str) -> str:
    """Whether the text is an answer ("whole"), the beginning of one ("open"), or neither ("no")."""
    one = grammar.matcher((END,))
    one.follow(spelled(tokenizer, text))
    mask = one.mask()
    if one.failed:
        return "no"
    return "whole" if mask[0] >> END & 1 else "open"


# --- structures and triggers ------------------------------------------------------------------------------------------

STATES = {
    "whole": (
        "", "free é 𝄞 text\n", "<", "a <f", "<f>{}</f>", 'x <f=one>{"a": 12}</f>',
        '<f=one>{"a": 1}</f><f=two>"up"</f> and so on',
        '@go"down"', '@go"down" or @go"up"<f', "</f>",
    ),
    "open": ("a <f=", "a <f=o", "<f=one>", '<f=one>{"a": 1}', '<f=one>{"a": 1}</', "@", '@go"down'),
    "no": ("<f=three", "<f= ", "<f=one> x", '<f=one>{"b"', '<f=one>{"a": 1}</f>@x', "@go{", '<f=two>"left"', "@@"),
}  # fmt: skip


@pytest.mark.parametrize(("wanted", "text"), [(wanted, text) for wanted, texts in STATES.items() for text in texts])
def test_free_text_and_tags(grammars: Grammars, tokenizer: Tokenizer, wanted: str, text: str):
    assert state(tokenizer, compiled(grammars, OLD), text) == wanted


def judged(text: str) -> str:
    """As `state`, of the structures above, of one that wrote it to its end: by a search for the triggers."""
    while found := re.search("<f=|@", text):
        rest = text[found.start() :]
        for each in STRUCTURES:
            begin, end = str(each["begin"]), str(each["end"])
            if rest.startswith(begin):
                value, length = json.JSONDecoder().raw_decode(rest.removeprefix(begin).lstrip())
                if each["schema"] is CITY:
                    assert list(value) == ["a"] and type(value["a"]) is int
                else:
                    assert value in ("up", "down")
                after = rest.removeprefix(begin).lstrip()[length:]
                assert after.startswith(end), after
                text = after.removeprefix(end)
                break
        else:
            return "no"
    return "whole"


def test_whatever_is_drawn_has_whole_tags_alone(grammars: Grammars, tokenizer: Tokenizer):
    """At random from the masks, with triggers set in: tokens that go over the edge of a trigger or a tag come up, too."""
    own = [tokenizer.spell(i, first=False, skip_special_tokens=True) or b"" for i in range(VOCAB)]
    closing = [i for i, text in enumerate(own) if text[:1] in (b"}", b'"', b"<", b":") or text[:2] == b"@g"]
    grammar, chance, tags, free = compiled(grammars, OLD), random.Random(3), 0, 0
    for _ in range(12):
        one, tokens = grammar.matcher((END,)), list[int]()
        while len(tokens) < 400:
            one.follow(tokens)
            mask = one.mask()
            within = sum(map(int.bit_count, mask)) < 2000
            if not within and (len(tokens) > 60 or chance.random() < 0.02):
                break
            free += not within
            if not within and chance.random() < 0.2:
                tokens += spelled(tokenizer, chance.choice(("<f", "@")))
                continue
            ids = closing if within and chance.random() < 0.5 else range(VOCAB)
            allowed = [i for i in ids if i != END and mask[i // 8] >> i % 8 & 1]
            tokens += [chance.choice(allowed)] if allowed else []
        else:
            continue  # some integer without end
        text = b"".join(own[i] for i in tokens).decode(errors="replace")
        assert judged(text) == "whole", text
        tags += text.count("</f>") + text.count("@go")
    assert tags > 30 and free > 100


def test_a_token_that_begins_within_free_text_goes_into_the_tag(grammars: Grammars, tokenizer: Tokenizer):
    """No id is allowed whose text has more than the tag lets follow, wherever the trigger stands in it."""
    own = [tokenizer.spell(i, first=False, skip_special_tokens=True) or b"" for i in range(VOCAB)]
    trigger = " the"
    tag = {"structures": [{"begin": " they are", "schema": WORD, "end": "."}], "triggers": [trigger]}
    mask = compiled(grammars, tag).matcher((END,)).mask()
    across = [i for i, text in enumerate(own) if trigger.encode() in text]
    allowed = {own[i] for i in across if mask[i // 8] >> i % 8 & 1}
    assert len(across) > 5 and allowed == {text for text in map(own.__getitem__, across) if b" they are".startswith(text)}


# --- formats ----------------------------------------------------------------------------------------------------------

JSON = {"type": "json_schema", "json_schema": CITY}
ANY = {"type": "any_text"}
A, NUMBER = {"type": "const_string", "value": "a"}, {"type": "regex", "pattern": "[0-9]/?"}
TAGS = [
    {"begin": "<c>", "content": JSON, "end": "</c>"},
    {"begin": "<d>", "content": ANY, "end": ["</d>", "</e>"]},
]
GOOD_C, GOOD_D = '<c>{"a": 1}</c>', "<d>x <c> </e>"


def triggered(**more: Any) -> dict[str, Any]:
    return {"type": "triggered_tags", "triggers": ["<c", "<d"], "tags": TAGS, **more}


def row(*elements: Any) -> dict[str, Any]:
    return {"type": "sequence", "elements": elements}


FORMATS: list[tuple[dict[str, Any], str, str]] = [
    (ANY, "|anything <c>|", ""),
    ({**ANY, "excludes": ["no", "<"]}, "|n o|", "~no|~a<"),
    (A, "a", "|~b|~aa"),
    (NUMBER, "1|1/", "|~1/1"),
    (JSON, '{"a": 1}', '{"a": |~[|~{"a": 1} '),
    (row(A, NUMBER, ANY), "a1|a1/1 and", "a|~1"),
    ({"type": "or", "elements": [A, NUMBER, row(A, A)]}, "a|aa|1", "|~aaa|~b"),
    ({"type": "optional", "content": A}, "|a", "~aa"),
    ({"type": "star", "content": A}, "|a|aaaa", "~b"),
    ({"type": "plus", "content": A}, "a|aaaa", "|~b"),
    ({"type": "repeat", "min": 2, "max": 3, "content": A}, "aa|aaa", "a|~aaaa"),
    ({"type": "repeat", "min": 2, "max": -1, "content": A}, "aa|aaaaa", "a"),
    (row({"type": "const_string", "value": ""}, A), "a", ""),
    ({"type": "tag", **TAGS[0]}, GOOD_C, '<c>|<c>{"a": 1}|~<c></c>|~<c>{"a": 1}</d>|~' + GOOD_C + "x"),
    ({"type": "tag", **TAGS[1]}, f"<d></e>|{GOOD_D}", "<d>free|<d></</d|~<d></d></d>"),
    ({"type": "tag", "begin": "", "content": {**ANY, "excludes": ["<"]}, "end": "</d>"}, "ab</d>", "~a<b"),
    (triggered(), f"|free|{GOOD_C}|a{GOOD_C}b{GOOD_D}<", "<c|a<c>|~<c>x|~<cc"),
    (triggered(at_least_one=True), f"{GOOD_C}|{GOOD_D} {GOOD_C}", "|~a|~<x"),
    (triggered(stop_after_first=True), f"|free|a{GOOD_C}", f"~{GOOD_C}a"),
    (triggered(at_least_one=True, stop_after_first=True), f"{GOOD_C}|{GOOD_D}", f"|~a|~{GOOD_C}a"),
    (triggered(excludes=["no"]), f"n|{GOOD_C}n", f"~no|~{GOOD_C}no"),
    ({"type": "tag", "begin": "[", "content": triggered(), "end": "]"}, f"[]|[a]|[{GOOD_D}{GOOD_C}]", f"[a|[{GOOD_D}|~[]a"),
    ({"type": "tag", "begin": "[", "content": triggered(stop_after_first=True), "end": "]"}, f"[a{GOOD_C}]|[]", f"~[{GOOD_C}a"),
    ({"type": "tags_with_separator", "tags": TAGS, "separator": ","}, f"|{GOOD_C}|{GOOD_C},{GOOD_D}", f"~a|~{GOOD_C}{GOOD_C}"),
    ({"type": "tags_with_separator", "tags": TAGS, "separator": "", "at_least_one": True}, f"{GOOD_C}{GOOD_D}", "|~a"),
    ({"type": "tags_with_separator", "tags": TAGS, "separator": ",", "stop_after_first": True}, f"|{GOOD_C}", f"~{GOOD_C},"),
    (
        row({"type": "tag", "begin": "<t>", "content": ANY, "end": "</t>"}, triggered()),
        f"<t><c></t>a{GOOD_C}",
        "~a|<t>|~<t></t><c>x",
    ),
]


@pytest.mark.parametrize(("form", "whole", "other"), FORMATS, ids=[json.dumps(each[0])[:60] for each in FORMATS])
def test_formats(grammars: Grammars, tokenizer: Tokenizer, form: dict[str, Any], whole: str, other: str):
    """Texts that are whole; of the others, those behind a ~ are no beginning of an answer either."""
    grammar = compiled(grammars, {"format": form})
    for text in whole.split("|"):
        assert state(tokenizer, grammar, text) == "whole", text
    for text in other.split("|") if other else ():
        assert state(tokenizer, grammar, text.removeprefix("~")) == ("no" if text.startswith("~") else "open"), text


# --- marks that are special tokens, reasoning before ------------------------------------------------------------------


def test_marks_may_be_special_tokens(grammars: Grammars, tokenizer: Tokenizer):
    """As the token or spelled; other special tokens are no text."""
    tag = {"begin": "<|tool|>go", "content": JSON, "end": ["<|pad|>", "."]}
    grammar = compiled(grammars, {"format": {"type": "triggered_tags", "triggers": ["<|tool|>"], "tags": [tag]}})
    assert state(tokenizer, grammar, 'a<|tool|>go{"a": 1}<|pad|>b<|tool|>go{"a": 1}.') == "whole"
    assert state(tokenizer, grammar, "a<|tool|>x") == state(tokenizer, grammar, "a<|user|>") == "no"
    one = grammar.matcher((END,))
    one.follow([i for c in "a<|tool|>g" for i in tokenizer.encode(c, add_special_tokens=False)])
    assert not one.mask()[0] >> END & 1 and not one.failed
    grammar = compiled(grammars, {"format": {"type": "tag", "begin": "<|tool|>", "content": ANY, "end": "<|pad|>"}})
    assert state(tokenizer, grammar, "<|tool|>any<|pad|>") == "whole" and state(tokenizer, grammar, "<|tool|>any") == "open"


def test_reasoning_comes_before(grammars: Grammars, tokenizer: Tokenizer):
    grammar = compiled(grammars, OLD, opening="opening[lazy]: /(?s:.*)END/")
    assert state(tokenizer, grammar, 'I <f= ENDso @go"up"') == "whole" and state(tokenizer, grammar, "ENDso @x") == "no"


def test_they_are_checked_before_they_run():
    check = GrammarCheck(bundled(), VOCAB)
    check(StructuredOutputs(structural_tag=OLD))
    remark = {"structures": [{"begin": "<", "schema": {"type": "string", "format": "path"}, "end": ">"}], "triggers": ["<"]}
    check(StructuredOutputs(structural_tag=remark))
    unique = {"structures": [{"begin": "<", "schema": {"uniqueItems": True}, "end": ">"}], "triggers": ["<"]}
    bombs = {"properties": {f"p{i}": {"type": "string"} for i in range(4000)}}
    dear = {"structures": [{"begin": "<", "schema": bombs, "end": ">"}], "triggers": ["<"]}
    for tag, message in (
        (unique, "structured_outputs.structural_tag does not compile: Unimplemented keys"),
        ({"format": {"type": "regex", "pattern": "(a"}}, "does not compile: invalid regular expression: unclosed group"),
        (dear, "structured_outputs.structural_tag takes more than"),
    ):
        with pytest.raises(RequestError, match=re.escape(message)):
            check(StructuredOutputs(structural_tag=tag))
