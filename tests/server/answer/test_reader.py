"""Readers: every dialect's calls are found, what is no call stays content, and how the text was cut is never seen."""

from __future__ import annotations

import json
import re
import time
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.server.answer.choice import Named, Tool, ToolChoice
from shardwise.server.answer.pieces import Argued, Called, Message, Said, Thought
from shardwise.server.answer.reader import reader
from shardwise.server.answer.style import MISTRAL_THINK, THINK, Dialect, Style
from shardwise.server.answer.tape import MOST_HELD
from tests.server.answer.examples import CONTENT, MARKS, READ
from tests.server.answer.reading import TOOLS, Told, cut, read, told

DIALECTS: tuple[Dialect, ...] = get_args(Dialect)


@pytest.mark.parametrize(("dialect", "text", "expected"), READ)
def test_every_dialect_is_read(dialect: Dialect, text: str, expected: Told):
    assert read(Style(dialect), text) == expected
    assert read(Style(dialect), *text) == expected


@pytest.mark.parametrize(("dialect", "text"), CONTENT)
def test_what_is_no_call_is_content_verbatim(dialect: Dialect, text: str):
    assert read(Style(dialect), text) == Told(None, text, [])
    assert read(Style(dialect), *text) == Told(None, text, [])


@pytest.mark.parametrize(
    ("style", "text", "expected"),
    [
        (Style(think=THINK), "\n<think>\n\nHm,\n so </think>\n\n It is.\n", ("Hm,\n so", "It is.\n")),
        (Style(think=THINK, opened=True), "\nHm.\n</think>\n\nIt is.", ("Hm.", "It is.")),
        (Style(think=THINK, opened=True), "<think>\nHm.\n</think>It is.", ("Hm.", "It is.")),
        (Style(think=THINK, opened=True), "Hm, and no end\n", ("Hm, and no end", None)),
        (Style(think=THINK), "<think>\n\n</think>\n\nIt is.", (None, "It is.")),
        (Style(think=THINK), " It is: <think>no</think>", (None, " It is: <think>no</think>")),
        (Style(think=THINK), "</think>It is.", (None, "</think>It is.")),
        (Style("mistral", MISTRAL_THINK), "[THINK]Hm.[/THINK]It is.", ("Hm.", "It is.")),
        (Style("hermes", THINK), "<think><tool_call></think>", ("<tool_call>", None)),
        (Style(), "", (None, "")),
    ],
)  # fmt: skip
def test_reasoning_is_split_off(style: Style, text: str, expected: tuple[str | None, str | None]):
    for texts in ([text], text):
        assert read(style, *texts)[:2] == expected


# --- however it is cut ------------------------------------------------------------------------------------------------

TEXTS = st.one_of(
    st.lists(st.sampled_from(MARKS) | st.text(max_size=3), max_size=25).map("".join),
    st.tuples(st.sampled_from(READ), st.sampled_from(READ)).map(lambda pair: pair[0][1] + pair[1][1]),
    st.tuples(st.sampled_from(READ), st.integers(0, 200)).map(lambda pair: pair[0][1][: pair[1]]),
    st.tuples(st.sampled_from(READ), st.integers(0, 200), st.sampled_from(MARKS)).map(
        lambda it: it[0][1][: it[1]] + it[2] + it[0][1][it[1] :]
    ),
)
STYLES = st.builds(Style, st.sampled_from(DIALECTS), st.sampled_from([None, THINK, MISTRAL_THINK]))


@settings(max_examples=1500, deadline=None)
@given(STYLES, st.booleans(), TEXTS, st.lists(st.integers(0, 1000), max_size=12), st.booleans(), st.booleans())
def test_cuts_are_never_seen(style: Style, opened: bool, text: str, places: list[int], parallel: bool, forced: bool):
    style = Style(style.calls, style.think, opened and style.think is not None)
    choice: ToolChoice = "required" if style.calls == "plain" or forced else "auto"
    whole = read(style, text, choice=choice, parallel=parallel)
    assert read(style, *cut(text, places), choice=choice, parallel=parallel) == whole
    assert read(style, *text, choice=choice, parallel=parallel) == whole
    if not whole.calls and style.think is None and style.calls != "harmony":
        # Where a call is forced, what may be the beginning of one at the end is left out.
        assert whole.content == text if choice == "auto" else text.startswith(whole.content or "")
    if not parallel:
        assert len(whole.calls) <= 1


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(DIALECTS), TEXTS)
def test_without_tools_or_with_none_all_is_content(dialect: Dialect, text: str):
    if dialect != "harmony":
        assert read(Style(dialect), text, choice="none") == read(Style(dialect), text, tools=()) == Told(None, text, [])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(), VALUES, max_size=4), st.booleans(), st.lists(st.integers(0, 1000), max_size=6))
def test_any_arguments_come_back_as_they_were_written(arguments: dict[str, object], ascii_only: bool, places: list[int]):
    written = json.dumps(arguments, ensure_ascii=ascii_only)
    text = f'<tool_call>\n{{"name": "weather", "arguments": {written}}}\n</tool_call>'
    assert read(Style("hermes"), *cut(text, places)) == Told(None, None, [("weather", written)])


# --- as soon as can be ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
def test_text_goes_out_at_once(dialect: Dialect):
    reading = reader(Style(dialect, None if dialect == "harmony" else THINK), TOOLS, "auto", True)
    head = "<|channel|>final<|message|>" if dialect == "harmony" else ""
    assert told([*reading.feed(head), *reading.feed("It i")]).content == "It i"
    assert told(reading.feed("s 1 <")).content == ("s 1 <" if dialect in ("plain", "mistral") else "s 1")
    assert (told(reading.feed("= 2")).content or "").endswith("= 2")


def test_arguments_go_out_at_once():
    reading = reader(Style("hermes"), TOOLS, "auto", True)
    assert reading.feed('Yes <tool_call>\n{"name": "weather", "arguments": ') == [Said("Yes")]
    begun = reading.feed('{"place": "Zü')
    assert isinstance(begun[0], Called) and (begun[0].index, begun[0].name) == (0, "weather")
    assert re.fullmatch(r"call_[a-zA-Z0-9]{24}", begun[0].id)
    assert begun[1:] == [Argued(0, '{"place": "Zü')]
    assert reading.feed('rich"}') == [Argued(0, 'rich"}')]
    assert reading.feed("}\n</tool_call>") == reading.finish() == []


def test_a_tool_that_was_not_offered_is_said_at_once():
    reading = reader(Style("hermes"), TOOLS, "auto", True)
    assert reading.feed('<tool_call>{"name": "other"') == [Said('<tool_call>{"name": "other"')]


def test_ids_are_each_their_own_and_short_for_mistral():
    message = Message()
    reading = reader(Style("mistral"), TOOLS, "auto", True)
    for piece in reading.feed("[TOOL_CALLS]get-now[ARGS]{}" * 2):
        message.add(piece)
    ids = [each for each, _, _ in message.calls]
    assert len(set(ids)) == 2 and all(re.fullmatch(r"[a-zA-Z0-9]{9}", each) for each in ids)


def test_thoughts_go_out_at_once():
    reading = reader(Style("hermes", THINK, opened=True), TOOLS, "auto", True)
    assert reading.feed("\nHm, </th") == [Thought("Hm,")]
    assert reading.feed("en ") == [Thought(" </then")]


def test_broken_arguments_end_where_they_broke_and_nothing_is_lost():
    text = '<tool_call>{"name": "weather", "arguments": {"place": Rome}}</tool_call> there'
    assert read(Style("hermes"), text) == Told(None, "Rome}}</tool_call> there", [("weather", '{"place": ')])


@pytest.mark.parametrize("end", range(len('{"place": "a\\u00e9", "days": 12')))
def test_an_answer_cut_short_keeps_what_came_of_the_arguments(end: int):
    written = '{"place": "a\\u00e9", "days": 12'[: end + 1]
    text = f'<tool_call>{{"name": "weather", "arguments": {written}'
    assert read(Style("hermes"), text) == Told(None, None, [("weather", written)])


NOW, NAMED = ("get-now", "{}"), [("weather", "")]
CUT: list[tuple[Dialect, str, list[tuple[str, str]]]] = [
    ("hermes", '<tool_call>\n{"name": "weather"', NAMED),
    ("hermes", '<tool_call>{"name": "get-now"}</tool_call>\n<tool_call>{"name": "weather", "arg', [NOW, *NAMED]),
    ("hermes", '<tool_call>\n{"name": "weather', []),
    ("hermes", '<tool_call>\n{"arguments": {"days": 1}, "na', []),
    ("llama3", '{"name": "weather", "parameters":', NAMED),
    ("plain", '[{"name": "get-now", "parameters": {}}, {"name": "weather", ', [NOW, *NAMED]),
    ("mistral", '[TOOL_CALLS] [{"name": "weather", "arguments"', NAMED),
    ("mistral", "[TOOL_CALLS]weather[AR", NAMED),
    ("mistral", "[TOOL_CALLS]weather", []),
    ("pythonic", "[get-now(), weather(place='a', da", [NOW, *NAMED]),
    ("pythonic", "[weather(days=1)", [("weather", '{"days": 1}')]),
    ("pythonic", "[get-now(), weath", [NOW]),
    ("coder", "<tool_call>\n<function=weather>\n<parameter=pl", NAMED),
    ("coder", "<function=weather>\n<parameter=days>\n7\n</parameter>\n<parameter=", [("weather", '{"days": 7')]),
    ("deepseek", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>", NAMED),
    ("deepseek", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```js", NAMED),
    ("kimi", "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>", NAMED),
    ("harmony", "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>", NAMED),
]


@pytest.mark.parametrize(("dialect", "text", "calls"), CUT)
def test_a_forced_call_that_is_cut_short_is_told_as_far_as_it_came(
    dialect: Dialect, text: str, calls: list[tuple[str, str]]
) -> None:
    assert read(Style(dialect), text, choice="required") == Told(None, None if calls else "", calls)
    if dialect != "plain":
        assert read(Style(dialect), text).calls in (calls, [NOW], []), "where the model chose, what is not certain is content"


# --- the choice -------------------------------------------------------------------------------------------------------


def test_only_the_named_tool_counts():
    text = '<tool_call>{"name": "get-now"}</tool_call><tool_call>{"name": "weather"}</tool_call>'
    assert read(Style("hermes"), text, choice=Named("weather")).calls == [("weather", "{}")]


def test_only_the_first_call_is_kept_where_parallel_ones_are_not_wanted():
    text = '<tool_call>{"name": "get-now"}</tool_call>\n<tool_call>{"name": "weather"}</tool_call>'
    assert read(Style("hermes"), text, parallel=False) == Told(None, None, [("get-now", "{}")])


@pytest.mark.parametrize(
    "text", ['[{"name": "weather", "parameters": {"days": 1}}]', '{"name": "weather", "parameters": {"days": 1}}']
)
def test_a_plain_list_is_read_where_a_call_is_required(text: str):
    assert read(Style(), text, choice="required") == Told(None, None, [("weather", '{"days": 1}')])
    assert read(Style(), text, choice=Named("weather")).calls == [("weather", '{"days": 1}')]


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "5", "5"),
        ({"type": "integer"}, "5", 5),
        ({"type": "integer"}, "five", "five"),
        ({"type": "number"}, "5", 5),
        ({"type": ["integer", "null"]}, "null", None),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "null", None),
        ({"type": "boolean"}, "True", True),
        ({"type": "array"}, "[1, {}]", [1, {}]),
        ({"type": "number"}, "1e999", "1e999"),
        ({"type": "object"}, "[" * 20000, "[" * 20000),
        ({"$ref": "#/$defs/count"}, "5", 5),
        ({"$ref": "#/properties/it"}, "5", 5),
        ({"enum": ["5", "6"]}, "5", "5"),
        ({"const": 5}, "5", 5),
        ({}, '{"a": 1}', {"a": 1}),
        (True, "text", "text"),
    ],
)
def test_bare_values_have_the_type_that_the_schema_says(schema: object, text: str, value: object):
    tool = Tool("f", parameters={"properties": {"it": schema}, "$defs": {"count": {"type": "integer"}}})
    told = read(Style("coder"), f"<function=f><parameter=it>\n{text}\n</parameter></function>", tools=[tool])
    assert json.loads(told.calls[0][1]) == {"it": value}
    assert type(json.loads(told.calls[0][1])["it"]) is type(value)


# --- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["hermes", "coder", "pythonic"])
def test_what_is_held_is_bounded(dialect: Dialect):
    head = {
        "hermes": '<tool_call>{"arguments": {"place": "',
        "coder": "<function=weather><parameter=place>",
        "pythonic": '[weather(place="',
    }
    reading = reader(Style(dialect), TOOLS, "auto", True)
    pieces = reading.feed(head[dialect])
    filling = "x" * (1 << 16)
    for _ in range(24):
        pieces += reading.feed(filling)
    text = head[dialect] + 24 * filling
    early = told(pieces).content or ""
    assert len(text) - len(early) <= MOST_HELD < len(text)
    assert early + (told(reading.finish()).content or "") == text


CALL = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
LONG_NAME = '<tool_call>{"name": "' + 99 * "\\u0061"


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (f'<tool_call>{{"{"k" * 300}{CALL}', f'<tool_call>{{"{"k" * 300}'),  # a key too long to be one
        (f"{LONG_NAME}{CALL}", LONG_NAME),
        (f"a{' ' * 1000}{CALL}", f"a{' ' * 744}"),  # white space that had gone out
    ],
)
def test_bounds_do_not_show_how_the_text_was_cut(text: str, content: str):
    assert read(Style("hermes"), text) == read(Style("hermes"), *text) == Told(None, content, [("weather", "{}")])


def test_a_number_of_thousands_of_digits_breaks_the_arguments():
    arguments, rest = '{"days": ' + "1" * 1024, "2" * 1024 + "}"
    text = f'<tool_call>{{"name": "weather", "arguments": {arguments}{rest}'
    assert read(Style("hermes"), text) == read(Style("hermes"), *text) == Told(None, rest, [("weather", arguments)])


@pytest.mark.parametrize(
    ("dialect", "text"),
    [
        ("hermes", "<tool_call>"),
        ("hermes", '<tool_call>{"name": "weather'),
        ("hermes", "<"),
        ("hermes", '{"name": "weather", "arguments": {"place": "'),
        ("mistral", "[TOOL_CALLS][TOOL_"),
        ("pythonic", "[weather(place=[["),
        ("pythonic", "<|python_start|>[weather(["),
        ("coder", "<function=weather><parameter=a>"),
        ("harmony", "<|channel|>to=functions.weather<|channel|>"),
        ("deepseek", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>"),
    ],
)
def test_time_is_linear_in_the_text(dialect: Dialect, text: str):
    def seconds(chars: int) -> float:
        started = time.process_time()
        read(Style(dialect), *(text * chars)[:chars])
        return time.process_time() - started

    ratios = (seconds(48_000) / seconds(4_000) for _ in range(5))  # linear: 12; quadratic: 144
    assert any(ratio < 36 for ratio in ratios)
