"""Bodies that no client should send, made from good ones of every endpoint: by their values, then by their bytes.

All chance comes from the `Random` that is given: the same seed makes the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from random import Random
from typing import Any

from tests.hostile.bombs import bombs

HI = [{"role": "user", "content": "Tell me a story."}]
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 9}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": CITY}}
FLAT_TOOL = {"type": "function", "name": "weather", "parameters": CITY}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": [{"type": "text", "text": "Rain?"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "No."},
]
SHARED: dict[str, Any] = {
    "n": 2, "temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.01, "presence_penalty": 0.1, "frequency_penalty": 0.1,
    "repetition_penalty": 1.1, "seed": 7, "max_tokens": 4, "min_tokens": 1, "stop": ["###", "\n\n"], "stop_token_ids": [9],
    "ignore_eos": False, "logit_bias": {"9": -1.5}, "bad_words": ["frob"], "prompt_logprobs": 1, "priority": 0,
    "cache_salt": "a", "request_id": "r-1", "user": "u", "return_token_ids": True, "skip_special_tokens": True,
}  # fmt: skip
SHARED_STREAM = {key: value for key, value in SHARED.items() if key != "prompt_logprobs"} | {
    "stream": True,
    "stream_options": {"include_usage": True},
}
JSON_FORM = {"type": "json_schema", "json_schema": {"name": "c", "schema": CITY, "strict": True}}

GOOD: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", {"messages": HI, "max_tokens": 4}),
    ("/v1/chat/completions", {"messages": TALK, **SHARED, "logprobs": True, "top_logprobs": 2, "tools": [TOOL]}),
    ("/v1/chat/completions", {"messages": HI, **SHARED_STREAM, "chat_template_kwargs": {"enable_thinking": False}}),
    ("/v1/chat/completions", {"messages": HI, "max_tokens": 8, "response_format": JSON_FORM}),
    ("/v1/chat/completions", {"messages": HI, "max_tokens": 8, "tools": [TOOL], "tool_choice": "required"}),
    ("/v1/completions", {"prompt": "Once", "max_tokens": 4}),
    ("/v1/completions", {"prompt": ["Once", [9, 10]], **SHARED, "echo": True, "logprobs": 2}),
    ("/v1/completions", {"prompt": [9, 10], **SHARED_STREAM}),
    ("/v1/completions", {"prompt": "A year:", "max_tokens": 6, "structured_outputs": {"regex": "1[0-9]{3}"}}),
    ("/v1/completions", {"prompt": "Once", "max_tokens": 4, "structural_tag": {"format": {
        "type": "triggered_tags", "triggers": ["<"], "excludes": ["@"], "tags": [{"begin": "<f>", "end": ["</f>"], "content": {
            "type": "json_schema", "json_schema": {"type": "integer"}}}]}}}),
    ("/v1/completions", {"prompt": "Once", "max_tokens": 4, "best_of": 2, "guided_choice": ["yes", "no"]}),
    ("/v1/responses", {"input": "Hi", "max_output_tokens": 4, "store": False}),
    ("/v1/responses", {
        "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}],
        "instructions": "Be short.", "max_output_tokens": 4, "temperature": 0.5, "tools": [FLAT_TOOL], "tool_choice": "auto",
        "text": {"format": {"type": "json_schema", "name": "c", "schema": CITY}}, "metadata": {"a": "b"}, "stream": True,
        "include": ["message.output_text.logprobs"], "top_logprobs": 1, "reasoning": {"effort": "low"}, "truncation": "auto",
    }),
    ("/v1/responses/input_tokens", {"input": "Hi"}),
    ("/v1/messages", {"messages": HI, "max_tokens": 4, "system": "Be short.", "stop_sequences": ["###"], "top_k": 5}),
    ("/v1/messages", {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "max_tokens": 4, "stream": True,
        "tools": [{"name": "weather", "input_schema": CITY}], "tool_choice": {"type": "auto"}, "thinking": {"type": "disabled"},
    }),
    ("/v1/messages/count_tokens", {"messages": HI}),
    ("/v1/embeddings", {"input": ["a", "b"], "encoding_format": "base64", "dimensions": 8, "pooling": "mean"}),
    ("/v1/embeddings", {"input": [[9, 10], [11]]}),
    ("/v1/score", {"text_1": "Once", "text_2": ["upon", "a time"]}),
    ("/v1/rerank", {"query": "Who?", "documents": ["The king", {"text": "A dog"}], "top_n": 1}),
    ("/tokenize", {"prompt": "Once", "return_token_strs": True}),
    ("/tokenize", {"messages": HI, "add_generation_prompt": True}),
    ("/detokenize", {"tokens": [9, 10, 11]}),
    ("/apply-template", {"messages": TALK, "tools": [TOOL]}),
    ("/inference/v1/generate", {"token_ids": [9, 10], "sampling_params": {"max_tokens": 4, "logprobs": 1}}),
    ("/generate", {"inputs": "Once", "parameters": {"max_new_tokens": 4, "details": True, "top_n_tokens": 1, "stop": ["#"]}}),
    ("/generate_stream", {"inputs": "Once", "parameters": {"max_new_tokens": 4, "do_sample": True, "seed": 1}}),
    ("/", {"inputs": "Once", "parameters": {"max_new_tokens": 4}, "stream": True}),
)  # fmt: skip
"""(path, a body that works), with each field that there is in one of them."""

TEXTS = (
    "", " ", "a" * 5000, "\u0000", "\ufffd", "\ud83d", "\udc00\ud800", "\U0001f469\u200d\U0001f680", "e\u0301" * 50,
    "\u202e", "\u2028", "%s%n%x", "{{ 7 * 7 }}", "{% raw %}", "../../etc/passwd", "file:///etc/passwd", "http://[::1]/",
    "<|im_start|>system", "<|endoftext|>", "<tool_call>", "null", "NaN", "-1", "1e400", "auto", "required", "json_object",
)  # fmt: skip
NUMBERS = (
    0, 0, 0, -0.0, 1, -1, 2, 3, 0.5, -0.5, 1e-320, 1e308, -1e308, 2**31 - 1, 2**31, -(2**31), 2**53 + 1, 2**63 - 1, 2**63,
    -(2**63),
    2**64, 10**30, 4095, 4096, 65536, 1e16, float("nan"), float("inf"), -float("inf"),
)  # fmt: skip
OTHERS = (None, True, False, [], {}, [[]], [None], {"": None}, [[[]]], [1, "a", None], {"type": "text"}, {"type": None})

SPOILERS = (
    b"", b'"', b"'", b"{", b"[", b"}", b"]", b",", b":", b"\\", b"\\u", b"\\ud800", b"\\u0000", b"\x00", b"\xff", b"\xc0\x80",
    b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"NaN", b"-Infinity", b"1e400", b"-0", b"-", b"01", b"1.", b".5", b"+1", b"0x10",
    b"9" * 40, b"9" * 5000, b"1" + b"0" * 400 + b".5", b"null", b"true", b"[" * 40, b"[" * 100_000, b'{"a":' * 33,
    b'{"a":' * 50_000, b'"stream": true,', b'"model": "a",', b"\xef\xbb\xbf", b"\xff\xfe", b"/* */", b"\r\n\r\n", b"\x1f\x8b",
)  # fmt: skip


def body(source: Random) -> tuple[str, bytes]:
    """(path, what is sent there): seldom all right, most often spoilt in one to three ways."""
    path, good = source.choice(GOOD)
    return path, spoilt(source, path, good)


def spoilt(source: Random, path: str, good: dict[str, Any]) -> bytes:
    """A good body of `path` in some bad shape."""
    value: Any = deepcopy(good)
    kind = source.random()
    if kind < 0.15:
        value.update(source.choice(bombs(path)))
    elif kind < 0.80:
        for _ in range(source.randint(1, 3)):
            other = changed(source, deepcopy(value))
            value = other if weight(other) <= MOST else value
    data = written(source, value)
    if kind >= 0.75:
        for _ in range(source.randint(1, 3)):
            at = source.randrange(len(data) + 1)
            data = data[:at] + source.choice(SPOILERS) + data[at + source.choice((0, 0, 0, 1, 5, 60)) :]
    return data


MOST = 1_000_000
"""What a body weighs at most: changes that each repeat a value three thousand times would make gigabytes of it."""


def weight(value: Any) -> int:
    """About the bytes of a value as JSON; anything above MOST where it has more."""
    found = 0
    for holder, key in spots(value):
        each = holder[key]
        found += 10 + (len(each) if isinstance(each, str) else 0) + (len(key) if isinstance(key, str) else 0)
        if found > MOST:
            break
    return found


def changed(source: Random, value: Any) -> Any:
    """One value in it replaced, taken out, doubled, wrapped, or moved to a field that is not its own."""
    places = list(spots(value))
    if not places:
        return nasty(source)
    holder, key = source.choice(places)
    match source.randrange(8):
        case 0:
            del holder[key]
        case 1:
            holder[key] = [holder[key]] * source.choice((1, 2, 40, 3000))
        case 2:
            holder[key] = {source.choice(("", "type", "text", "a" * 300, "\ud800", "$ref", "__class__")): holder[key]}
        case 3:
            other, name = source.choice(places)
            holder[key] = deepcopy(other[name]) if name in other or isinstance(other, list) else None
        case 4 if isinstance(holder, dict):
            holder[source.choice(("", "stream", "n", "model", "tools", "echo", "frob", "a" * 5000, "\ud800"))] = nasty(source)
        case 5:
            for _ in range(source.choice((2, 31, 32, 33, 200))):
                holder[key] = [holder[key]] if source.random() < 0.5 else {"a": holder[key]}
        case _:
            holder[key] = nasty(source)
    return value


def spots(value: Any) -> Iterator[tuple[Any, Any]]:
    """(what holds it, its name or number) of everything within a value."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from spots(value[key])


def nasty(source: Random) -> Any:
    """A value that is out of place nearly everywhere."""
    return deepcopy(source.choice(source.choice((TEXTS, NUMBERS, OTHERS))))


def written(source: Random, value: Any) -> bytes:
    """As JSON, where Python's leniency (NaN, Infinity, half characters) is wanted; sometimes in another writing of it."""
    text = json.dumps(value, ensure_ascii=source.random() < 0.7, indent=source.choice((None, None, None, 1)))
    if text.startswith("{") and len(text) > 2 and source.random() < 0.04:
        text = text[:-1] + ", " + text[1:]  # every field twice
    data = text.encode("utf-8", "surrogatepass")
    if source.random() < 0.03:
        return text.encode(source.choice(("utf-16", "utf-32", "utf-8-sig")), "surrogatepass")
    return data
