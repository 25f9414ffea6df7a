"""Answers in every dialect, and the messages that they are."""

from __future__ import annotations

from shardwise.server.answer.style import Dialect
from tests.server.answer.reading import Told

PLACE = '{"place": "Zürich \\"see\\" <tool_call>", "days": -2.5e1}'
ONE = [("weather", PLACE)]
BOTH = [*ONE, ("get-now", "{}")]

HERMES = f'<tool_call>\n{{"name": "weather", "arguments": {PLACE}}}\n</tool_call>'
LLAMA = f'{{"name": "weather", "parameters": {PLACE}}}'
MISTRAL = f'{{"name": "weather", "arguments": {PLACE}, "id": "abcdefgh1"}}'
CODER = "<function=weather>\n<parameter=place>\n\n5 < 6\n</parameter>\n<parameter=days>\n7\n</parameter>\n</function>"
PYTHON = "weather(place='a](\\'', days=-2)"


def deepseek(*calls: str) -> str:
    return (
        "<｜tool▁calls▁begin｜>"
        + "".join(f"<｜tool▁call▁begin｜>{call}<｜tool▁call▁end｜>" for call in calls)
        + "<｜tool▁calls▁end｜>"
    )


def kimi(**calls: str) -> str:
    mark, end = "<|tool_call_argument_begin|>", "<|tool_call_end|>"
    each = (
        f"<|tool_call_begin|>functions.{name.replace('_', '-')}:{n}{mark}{text}{end}"
        for n, (name, text) in enumerate(calls.items())
    )
    return f"<|tool_calls_section_begin|>{''.join(each)}<|tool_calls_section_end|>"


def harmony(channel: str, text: str, end: str) -> str:
    return f"<|channel|>{channel}<|message|>{text}{end}"


NEXT = "<|end|><|start|>assistant"
TO_WEATHER = "commentary to=functions.weather <|constrain|>json"
JSON_STRING = '<tool_call>{"name": "weather", "arguments": "{\\"days\\": 1}"}</tool_call>'
NEWLINE = '<tool_call>{"name": "weather", "arguments": {"place": "a\nb"}}</tool_call>'
ANY_PYTHON = "weather(unit=None, days=[1, (2.5, true)])"
WRITTEN = '{"unit": null, "days": [1, [2.5, true]]}'
ESCAPES = 'So: <|python_start|>[weather(place="\\ud83d\\ude00é\\d\\/")]<|python_end|>'

READ: list[tuple[Dialect, str, Told]] = [
    ("hermes", f'{HERMES}\n<tool_call>\n{{"name":"get-now"}}</tool_call>', Told(None, None, BOTH)),
    ("hermes", f"Well.\n\n{HERMES.removesuffix('</tool_call>')}", Told(None, "Well.", ONE)),
    ("hermes", f'<tool_call>{{"parameters": {PLACE}, "name": "weather"}}</tool_call>', Told(None, None, ONE)),
    ("hermes", f"{JSON_STRING} So.\n", Told(None, " So.\n", [("weather", '{"days": 1}')])),
    ("hermes", NEWLINE, Told(None, None, [("weather", '{"place": "a\\nb"}')])),
    ("hermes", f"The mark <tool_call> is said. {HERMES}", Told(None, "The mark <tool_call> is said.", ONE)),
    ("hermes", f"Well.{HERMES}\n\n", Told(None, "Well.", ONE)),
    ("mistral", '[TOOL_CALLS][{"name": "get-now", "arguments": {}, "id": "ab', Told(None, None, BOTH[1:])),
    ("llama3", f'{LLAMA}; {{"type": "function", "name": "get-now", "parameters": {{}}}}', Told(None, None, BOTH)),
    ("llama3", f"Look: <|python_tag|>{LLAMA}", Told(None, "Look:", ONE)),
    ("mistral", f'[TOOL_CALLS] [{MISTRAL}, {{"name": "get-now", "arguments": {{}}}}]', Told(None, None, BOTH)),
    ("mistral", f"Hm.[TOOL_CALLS]weather[ARGS]{PLACE}", Told(None, "Hm.", ONE)),
    ("mistral", "[TOOL_CALLS]get-now[CALL_ID]abcdefgh1[ARGS]{}[TOOL_CALLS]get-now{}", Told(None, None, BOTH[1:] * 2)),
    (
        "pythonic",
        f"[{PYTHON}, {ANY_PYTHON}]",
        Told(None, None, [("weather", '{"place": "a](\'", "days": -2}'), ("weather", WRITTEN)]),
    ),
    ("pythonic", "[get-now(), weather( )]\n", Told(None, None, [("get-now", "{}"), ("weather", "{}")])),
    ("pythonic", ESCAPES, Told(None, "So:", [("weather", '{"place": "😀é\\\\d/"}')])),
    (
        "coder",
        f"On it.\n<tool_call>\n{CODER}\n</tool_call>",
        Told(None, "On it.", [("weather", '{"place": "\\n5 < 6", "days": 7}')]),
    ),
    ("coder", "<function=get-now></function>\n", Told(None, None, [("get-now", "{}")])),
    ("deepseek", deepseek(f"weather<｜tool▁sep｜>{PLACE}", "get-now<｜tool▁sep｜>{}"), Told(None, None, BOTH)),
    ("deepseek", deepseek(f"function<｜tool▁sep｜>weather\n```json\n{PLACE}\n```"), Told(None, None, ONE)),
    ("kimi", "Yes." + kimi(weather=PLACE, get_now="{}"), Told(None, "Yes.", BOTH)),
    ("harmony", harmony("analysis", "Hm. ", NEXT) + harmony(TO_WEATHER, PLACE, "<|call|>"), Told("Hm.", None, ONE)),
    ("harmony", f" to=functions.weather<|channel|>commentary json<|message|>{PLACE}", Told(None, None, ONE)),
    (
        "harmony",
        harmony("analysis", "One", "<|start|>assistant")
        + harmony("analysis", "Two", NEXT)
        + harmony("final", "Yes.\n", "<|return|>"),
        Told("One\nTwo", "Yes.\n", []),
    ),
    ("harmony", harmony("commentary", "I will look.", "<|end|>"), Told(None, "I will look.", [])),
]

CONTENT: list[tuple[Dialect, str]] = [
    ("hermes", 'a <tool_call>{"name": "other", "arguments": {"x": 1}}</tool_call> b\n\n'),
    ("hermes", '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": "weather", "arguments": "[1]"}</tool_call>'),
    ("hermes", '<tool_call>{"name": "weather", "arguments": null}</tool_call>'),
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "other"}</tool_call>'),
    ("hermes", '<tool_call>{"name": "weather", "argum'),
    ("hermes", "  1 < 2 and <tool_cal"),
    ("llama3", '{"answer": 42, "name": "weather"}'),
    ("llama3", '<|python_tag|>print("weather")\n'),
    ("mistral", '[TOOL_CALLS] [{"name": "other", "arguments": {}}]'),
    ("mistral", "[TOOL_CALLS]weather and more"),
    ("pythonic", "[1, 2, 3] is a list"),
    ("pythonic", "[get-now(), other()]"),
    ("pythonic", "[weather(), 5]"),
    ("pythonic", "[weather() + get-now()]"),
    ("pythonic", "[weather()()]"),
    ("pythonic", "[weather(place=open('/etc/passwd').read())]"),
    ("pythonic", "[weather('Rome')]"),
    ("pythonic", "[weather(**{'place': 'Rome'})]"),
    ("pythonic", "[weather(place=1, place=2)]"),
    ("pythonic", "[weather(days=1e999)]"),
    ("pythonic", "[weather(place='\\ud800')]"),
    ("pythonic", "[weather(place=" + "[" * 80 + "]" * 80 + ")]"),
    ("pythonic", "[weather(days=" + "-" * 30000 + "1)]"),
    ("coder", "<tool_call>\n<function=other>\n</function>\n</tool_call>"),
    ("coder", "<tool_call>\n<function=weather>\n<parameter=place>\nRome\n"),
    ("deepseek", deepseek("other<｜tool▁sep｜>{}")),
    ("kimi", kimi(other="{}")),
    ("harmony", harmony("commentary to=functions.other <|constrain|>json", "{}", "<|call|>")),
    ("harmony", "no channel at all"),
    ("plain", '[{"name": "weather", "parameters": {}}]'),
]

MARKS = [
    *("<think>", "</think>", "[THINK]", "[/THINK]", "<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]"),
    *("<function=weather>", "</function>", "<parameter=place>", "</parameter>", "<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"),
    *(
        "<|channel|>",
        "<|message|>",
        "<|end|>",
        "<|start|>",
        "<|tool_call_begin|>",
        "functions.weather:0",
        "<｜tool▁call▁begin｜>",
    ),
    *("analysis", "final", " to=functions.weather", "<|call|>", "weather", '{"name": "weather", "arguments": ', "days="),
    *("}", "{", "[", "]", "(", ")", '"', "'", "\\", ",", ":", ";", " ", "\n", "<", "<|", "\\u12", "1", "-", "true", "\x01"),
    *('{"place": "é', '"}', "a b"),
]
"""What may come between, to make nonsense of them."""
