"""Grammars for calls: what they let through is read as calls that hold to the schema, and nothing else gets through."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import llguidance
import pytest

import shardwise
from shardwise.engine.text import Tokenizer, open_tokenizer
from shardwise.server.answer.choice import Named, Tool, ToolChoice
from shardwise.server.answer.style import MISTRAL_THINK, THINK, Dialect, Style
from shardwise.server.answer.toolgrammar import tool_grammar
from tests.server.answer.reading import NOW, TOOLS, WEATHER, read

DIALECTS: tuple[Dialect, ...] = get_args(Dialect)
DEEP = Tool(
    "deep",
    parameters={
        "type": "object",
        "properties": {
            "flag": {"type": "boolean"},
            "count": {"$ref": "#/$defs/count"},
            "note": {"type": ["string", "null"]},
            "list": {"type": "array", "items": {"$ref": "#/$defs/count"}, "maxItems": 3},
            "kind": {"enum": ["a", "b c"]},
        },
        "required": ["count", "kind"],
        "additionalProperties": False,
        "$defs": {"count": {"type": "integer", "minimum": 0, "maximum": 99}},
    },
)
ALL = (*TOOLS, DEEP)
BUNDLED = Path(shardwise.__file__).parent / "data" / "shardling"


class Vocabulary:
    """The bundled model's tokenizer, as llguidance takes one: tokens by their bytes, with special tokens added behind them."""

    def __init__(self, tokenizer: Tokenizer, specials: tuple[str, ...]) -> None:
        self._encode = tokenizer.encode
        self.tokens: list[bytes] = []
        self.special_token_ids: list[int] = []
        for n in range(tokenizer.vocab_size):
            plain = tokenizer.spell(n, first=False, skip_special_tokens=True)
            self._add(plain or b"", tokenizer.token_text(n) if plain is None else None)
        added = len(self.tokens)
        for text in specials:
            self._add(b"", text)
        self.eos_token_id, self.bos_token_id = tokenizer.eos_ids[0], tokenizer.bos_id
        self.specials = {text: n for n, text in enumerate(specials, start=added)}

    def _add(self, plain: bytes, special: str | None) -> None:
        # 0xff begins no UTF-8: it is llguidance's mark of a special token, which no grammar's text matches.
        if special is not None:
            self.special_token_ids.append(len(self.tokens))
        self.tokens.append(plain if special is None else b"\xff" + special.encode())

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode(), add_special_tokens=False)

    def text(self, ids: list[int]) -> str:
        return b"".join(self.tokens[n].removeprefix(b"\xff") for n in ids).decode(errors="replace")


SPECIALS = (
    *("[TOOL_CALLS]", "[THINK]", "[/THINK]", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"),
    *("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|constrain|>"),
    *("<|call|>", "<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"),
    "<|tool_calls_section_end|>",
)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(open_tokenizer(BUNDLED), SPECIALS)


@pytest.fixture(scope="module")
def llguided(vocabulary: Vocabulary) -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(vocabulary))


def matcher(
    llguided: llguidance.LLTokenizer, style: Style, choice: ToolChoice = "required", parallel: bool = True, **more: Any
) -> llguidance.LLMatcher:
    grammar = tool_grammar(style, more.get("tools", ALL), choice, parallel, more.get("specials", {}))
    made = llguidance.LLMatcher(llguided, llguidance.LLMatcher.grammar_from_lark(grammar))
    assert not made.is_error(), f"{made.get_error()}\n{grammar}"
    return made


def takes(made: llguidance.LLMatcher, ids: list[int]) -> bool:
    """Whether the ids are a whole answer."""
    return made.try_consume_tokens(ids) == len(ids) and made.is_accepting()


ENDS = ("</parameter>", "</think>", "<|end|>")


def sample(made: llguidance.LLMatcher, vocabulary: Vocabulary, rng: random.Random, most: int = 400) -> list[int] | None:
    """An answer drawn at random from what the masks allow, None if it does not end in time."""
    ids: list[int] = []
    # By characters, for a tokenizer may have one of them as a special token.
    phrases = [[n for character in text for n in vocabulary(character)] for text in ENDS]
    while len(ids) < most and not made.is_stopped():
        if rng.random() < 0.3:  # by chance alone, a text of many characters never comes
            for phrase in rng.sample(phrases, len(phrases)):
                if made.validate_tokens(phrase) == len(phrase):
                    assert made.consume_tokens(phrase)
                    ids += phrase
                    break
            continue
        mask = made.compute_bitmask()
        allowed = [n for n in range(len(vocabulary.tokens)) if mask[n // 8] >> n % 8 & 1]
        assert allowed, f"no token is left behind {vocabulary.text(ids)!r}"
        # What ends a string or an answer comes often enough for the answer to end.
        ending = [
            n for n in allowed if vocabulary.tokens[n][:1] in (b'"', b"}", b"\n", b"<", b"\xff") or n == vocabulary.eos_token_id
        ]
        drawn = rng.choice(ending if ending and rng.random() < 0.6 else allowed)
        if drawn == vocabulary.eos_token_id:
            return ids
        assert made.consume_token(drawn)
        ids.append(drawn)
    return ids if made.is_accepting() else None


def holds(arguments: Any, tool: Tool) -> bool:
    """Whether the arguments hold to the schema of one of the tools above."""
    if tool is NOW:
        return arguments == {}
    if tool is WEATHER:
        kinds: Mapping[str, Any] = {"place": str, "days": int, "unit": str}
        good = arguments.get("unit", "C") in ("C", "F") and "place" in arguments
    else:
        kinds = {"flag": bool, "count": int, "note": str | None, "list": list, "kind": str}
        counts = [arguments.get("count"), *arguments.get("list", [])]
        good = all(type(n) is int and 0 <= n <= 99 for n in counts) and arguments.get("kind") in ("a", "b c")
    return good and all(key in kinds and isinstance(value, kinds[key]) for key, value in arguments.items())


NOW_OBJECT = '{"name": "get-now", "arguments": {}}'
HERMES = f"<tool_call>\n{NOW_OBJECT}\n</tool_call>"
CODER = "<tool_call>\n<function=weather>\n{}</function>\n</tool_call>"
PLACE_VALUE = "<parameter=place>\nRome\n</parameter>\n"
TO_NOW = "commentary to=functions.get-now <|constrain|>json"
THINKING = {"plain": (THINK, False), "hermes": (THINK, True), "coder": (THINK, True), "mistral": (MISTRAL_THINK, False)}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("with_specials", [False, True])
def test_whatever_is_sampled_is_calls_that_hold(
    vocabulary: Vocabulary, llguided: llguidance.LLTokenizer, dialect: Dialect, with_specials: bool
):
    think, opened = THINKING.get(dialect, (None, False))
    style = Style(dialect, think, opened)
    specials = vocabulary.specials if with_specials else {}
    rng = random.Random(f"{dialect} {with_specials}")
    ended = 0
    for _ in range(8):
        parallel = rng.random() < 0.5
        ids = sample(matcher(llguided, style, parallel=parallel, specials=specials), vocabulary, rng)
        if ids is None:
            continue
        ended += 1
        text = vocabulary.text(ids)
        told = read(style, *text, tools=ALL, choice="required", parallel=parallel)
        assert told.calls and not told.content, text
        assert parallel or len(told.calls) == 1, text
        for name, arguments in told.calls:
            tool = next(tool for tool in ALL if tool.name == name)
            assert holds(json.loads(arguments), tool), text
        for cut in range(len(text)):  # as by max_tokens
            short = read(style, text[:cut], tools=ALL, choice="required", parallel=parallel)
            assert not short.content and len(short.calls) <= len(told.calls), text[:cut]
            for (name, arguments), (whole_name, whole) in zip(short.calls, told.calls, strict=False):
                assert name == whole_name and whole.startswith(arguments), text[:cut]
    assert ended >= 3


@pytest.mark.parametrize(
    ("style", "good", "bad"),
    [
        (Style("hermes"), HERMES, NOW_OBJECT),
        (Style(), '[{"name": "get-now", "parameters": {}}]', "[]"),
        (Style(), '[{"name": "weather", "parameters": {"place": "x"}}]', '[{"name": "weather", "parameters": {"days": 1}}]'),
        (Style(), '[{"name": "weather", "parameters": {"place": "é\\n"}}]', '[{"name": "other", "parameters": {}}]'),
        (Style("llama3"), '{"name": "get-now", "parameters": {}}; {"name": "get-now", "parameters": {}}', "It is noon."),
        (Style("pythonic"), '[weather(place="Rome", unit="C")]', "[weather(unit='C')]"),
        (Style("coder"), CODER.format(PLACE_VALUE), CODER.format("")),
        (Style("hermes", THINK), f"<think>Hm.</think>\n\n{HERMES}", "<think>Hm."),
        (Style("hermes", THINK), HERMES, f"Hm.</think>{HERMES}"),
        (Style("hermes", THINK, opened=True), f"Hm.</think>\n{HERMES}", "Hm.</think>"),
        (Style("harmony"), f"<|channel|>{TO_NOW}<|message|>{{}}<|call|>", "<|channel|>final<|message|>"),
    ],
)
def test_good_answers_get_through_and_bad_ones_do_not(
    vocabulary: Vocabulary, llguided: llguidance.LLTokenizer, style: Style, good: str, bad: str
):
    assert takes(matcher(llguided, style), vocabulary(good)), good
    assert not takes(matcher(llguided, style), vocabulary(bad)), bad


def test_only_the_named_tool_and_only_one_call_get_through(vocabulary: Vocabulary, llguided: llguidance.LLTokenizer):
    now, weather = '{"name": "get-now", "parameters": {}}', '{"name": "weather", "parameters": {"place": ""}}'
    for choice, parallel, text, through in (
        ("required", True, f"[{now}, {weather}]", True),
        ("required", False, f"[{now}, {weather}]", False),
        (Named("weather"), True, f"[{weather}]", True),
        (Named("weather"), True, f"[{now}]", False),
    ):
        assert takes(matcher(llguided, Style(), choice, parallel), vocabulary(text)) == through, (choice, parallel, text)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"type": "object", "properties": {"a": True, "ü <x>": {"type": "string"}, 'q"\n': {}}},
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "^[a-z]+$"}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"enum": ["x", 1, None, "y\n</parameter>"]}}},
        {"type": "object", "properties": {"a": {"anyOf": [{"type": "string", "format": "path"}, {"type": "integer"}]}}},
    ],
)
def test_schemas_of_all_kinds_compile(llguided: llguidance.LLTokenizer, dialect: Dialect, parameters: dict[str, Any]):
    matcher(llguided, Style(dialect), tools=[Tool("f", parameters=parameters)])
