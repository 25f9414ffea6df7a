"""Fields that are well formed and cost much if taken at their word: patterns, schemas, grammars, templates, URLs."""

from __future__ import annotations

from functools import cache
from typing import Any

BAIT = b"{bait}"
"""Stands for a port where nobody must come: the runner listens there, and counts who does."""

URL = "http://127.0.0.1:{bait}/bait"

PATTERNS = (
    "(a+)+$", "(a|a)*b", "(a|aa)+$", "([a-zA-Z]+)*$", "(.*)*x", "a{1,100000}", "(a{1,1000}){1,1000}",
    "((a{1,100}){1,100}){1,100}",
    "(?=a)b", "(?<=a)b", "(a)\\1", "(?R)", "(", ")", "[", "[z-a]", "*", "a**", "\\", "\\p{Frob}", "(?P<a>b)(?P<a>c)",
    "x" * 50_000,
    "|".join("abcdefgh" * 500), "(" * 1000 + "a" + ")" * 1000, "[\\u0000-\\U0010ffff]{500}", "\ud800", "\x00", "", "^$", "\\b",
    "(?i)" * 200 + "a", ".{0,4000}\\d{0,4000}.{0,4000}", "(x+x+)+y", "[^\\W\\w]",
)  # fmt: skip


def _deep(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


SCHEMAS: tuple[Any, ...] = (
    {"$ref": "#"}, {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, {"$ref": URL}, {"$ref": "file:///etc/passwd"},
    {"$ref": "#/$defs/no"}, {"type": "frob"}, {"type": []}, {"type": 5}, {"allOf": [{"$ref": "#"}, {"$ref": "#"}]},
    {"anyOf": [{"const": n} for n in range(3000)]}, {"enum": ["x" * 100 + str(n) for n in range(3000)]}, {"enum": []},
    {"oneOf": [{"type": "integer"}, {"type": "number"}]}, {"not": {}}, {"type": "string", "pattern": "(a+)+$"},
    {"type": "string", "minLength": 10**9}, {"type": "array", "minItems": 10**9}, {"type": "string", "maxLength": -1},
    {"type": "integer", "minimum": 1e308, "maximum": -1e308}, {"type": "integer", "multipleOf": 0}, {"const": {"a": [1, 2.5]}},
    {"properties": {f"p{n}": {"type": "string"} for n in range(2000)}, "type": "object"}, {"type": "object", "properties": []},
    {"type": "object", "properties": {"\ud800": {}}}, {"patternProperties": {"(a+)+$": {}}}, True, False, "frob", _deep(28),
    {"type": "object", "required": [f"r{n}" for n in range(2000)]}, {"type": "string", "format": "frob"},
    {"type": "string", "pattern": "a{1,100000}"}, {"if": {}, "then": {}, "else": False}, {"unevaluatedProperties": False},
    {"type": "array", "items": {"$ref": "#"}, "minItems": 2, "maxItems": 2},
)  # fmt: skip
GRAMMARS = (
    "start: start", "start: a\na: b\nb: a", "start: /(a+)+$/", "root ::= root", "root ::= [a-", "start:", "%%",
    "start: \"a\"~100000",
    "root ::= \"a\"{1,100000}", "start: x", "x" * 20_000, "start: " + "(" * 500 + '"a"' + ")" * 500,
    "%import common.FROB\nstart: FROB",
    "start: " + " | ".join(f'"w{n}"' for n in range(4000)), "\x00", "%llguidance {\"frob\": 1}\nstart: /a/",
)  # fmt: skip
KWARGS: tuple[dict[str, Any], ...] = (
    {"tokenize": True}, {"messages": []}, {"tools": 5}, {"add_generation_prompt": "x"}, {"chat_template": "{{ 1 }}"},
    {"enable_thinking": {"a": 1}}, {"range": 5}, {"namespace": 5}, {"raise_exception": 5}, {"self": 5}, {"loop": 1}, {"": 1},
    {"__class__": 1}, {"strftime_now": 1}, {"x" * 5000: 1}, {f"k{n}": n for n in range(2000)}, {"conversation": 1}, {"a b": 1},
    {"enable_thinking": "{{ cycler.__init__.__globals__ }}"}, {"bos_token": "<|im_start|>"}, {"caller": 1}, {"None": 1},
)  # fmt: skip
TEMPLATES = (
    "{{ ''.__class__.__mro__ }}", "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{% for a in range(10**9) %}x{% endfor %}",
    "{{ 'a' * 10**9 }}", "{% include 'x' %}", "{% import 'os' as o %}", "{{ self }}",
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "{%", "{{", "{{ messages[10**20] }}", "{{ (1).__format__('1000000000') }}",
)  # fmt: skip
URLS = (
    URL, "http://localhost:{bait}/", "http://127.1:{bait}/", "http://0:{bait}/", "http://2130706433:{bait}/",
    "http://[::1]:{bait}/",
    "http://[::ffff:127.0.0.1]:{bait}/", "http://user@127.0.0.1:{bait}/", "http://127.0.0.1:{bait}\\@example.org/",
    "//127.0.0.1:{bait}/", "ftp://127.0.0.1:{bait}/", "gopher://127.0.0.1:{bait}/", "file:///etc/passwd",
    "data:image/png;base64,AAAA",
    "data:,", "HTTP://127.0.0.1:{bait}/", "http:127.0.0.1:{bait}", "http://127.0.0.1:{bait}/?a=\r\nX: y", "", "\x00",
    "about:blank",
)  # fmt: skip


def parts() -> list[dict[str, Any]]:
    """Content parts that name something to fetch, as the three APIs write them."""
    found: list[dict[str, Any]] = []
    for url in URLS:
        found += [
            {"type": "image_url", "image_url": {"url": url}}, {"type": "input_image", "image_url": url},
            {"type": "image", "source": {"type": "url", "url": url}}, {"type": "document", "source": {"type": "url",
            "url": url}},
            {"type": "input_file", "file_url": url}, {"type": "input_audio", "input_audio": {"data": url, "format": "wav"}},
            {"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": f"![a]({url}) <img src='{url}'>"},
        ]  # fmt: skip
    return found


@cache
def bombs(path: str) -> tuple[dict[str, Any], ...]:
    """What may be put over a good body of `path`."""
    found: list[dict[str, Any]] = []
    for part in parts():
        found += [{"messages": [{"role": "user", "content": [part]}]}, {"input": [{"role": "user", "content": [part]}]}]
    found += [{name: pattern} for pattern in PATTERNS for name in ("regex", "guided_regex")]
    found += [{"structured_outputs": {"regex": pattern}} for pattern in PATTERNS]
    found += [{name: grammar} for grammar in GRAMMARS for name in ("grammar", "ebnf", "guided_grammar")]
    for schema in SCHEMAS:
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        found += [
            {"guided_json": schema},
            {"response_format": form},
            {"text": {"format": {**form, "name": "a", "schema": schema}}},
        ]
        tag = {"structures": [{"begin": "<", "schema": schema, "end": ">"}], "triggers": ["<"]}
        found += [{"structural_tag": tag}, {"response_format": {"type": "structural_tag", **tag}}]
        function = {"name": "f", "parameters": schema, "input_schema": schema}
        tool = {"type": "function", "function": function, **function}
        found.append({"tools": [tool], "tool_choice": {"type": "any"} if path == "/v1/messages" else "required"})
        found.append({"parameters": {"grammar": {"type": "json", "value": schema}, "max_new_tokens": 4}})
    found += [{"chat_template_kwargs": kwargs} for kwargs in KWARGS] + [{"chat_template": each} for each in TEMPLATES]
    found += [
        {"prompt_embeds": "AAAA"},
        {"mm_processor_kwargs": {"a": 1}},
        {"lora_path": "/etc"},
        {"guided_decoding_backend": "x"},
    ]
    found += [
        {"n": 10**9},
        {"best_of": 128},
        {"logprobs": -1},
        {"prompt_logprobs": -1},
        {"stop": ["a"] * 5000},
        {"prompt": ["a"] * 5000},
    ]
    found += [{"input": ["a"] * 5000}, {"documents": ["a"] * 5000}, {"text_2": ["a"] * 5000}, {"inputs": "a b " * 200_000}]
    found += [
        {"prompt": "a b " * 200_000},
        {"prompt": "a" * 900_000},
        {"content": "\u0301" * 100_000},
        {"tokens": [9] * 300_000},
    ]
    found += [{"logit_bias": {str(n): 1 for n in range(4096)}}, {"bad_words": ["a" * 400] * 400}, {"messages": [*HI_MANY]}]
    return tuple(found)


HI_MANY = [{"role": "user", "content": "a"}] * 5000
