"""Chat templates of real models: their style is found in them, and the calls that they render are read back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2.sandbox
import pytest

from shardwise.engine.template import ChatTemplate
from shardwise.server.answer.style import MISTRAL_THINK, THINK, Style, detect
from tests.server.answer.reading import NOW, TOOLS, WEATHER, read, tool_fields

# The style behind a user's question, and what ends an answer of the model.
TEMPLATES: dict[str, tuple[Style, str]] = {
    "HuggingFaceTB-SmolLM3-3B": (Style("plain", THINK), "<|im_end|>"),
    "Kimi-K2-Instruct": (Style("kimi"), "<|im_end|>"),
    "Qwen-Qwen2.5-7B-Instruct": (Style("hermes"), "<|im_end|>"),
    "Qwen-Qwen3-0.6B": (Style("hermes", THINK), "<|im_end|>"),
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": (Style("deepseek", THINK, opened=True), "<｜end▁of▁sentence｜>"),
    "deepseek-ai-DeepSeek-V3.1": (Style("deepseek", THINK, closed=True), "<｜end▁of▁sentence｜>"),
    "google-gemma-2-2b-it": (Style("plain"), "<end_of_turn>"),
    "meta-llama-Llama-3.1-8B-Instruct": (Style("llama3"), "<|eot_id|>"),
    "meta-llama-Llama-3.2-3B-Instruct": (Style("llama3"), "<|eot_id|>"),
    "meta-llama-Llama-3.3-70B-Instruct": (Style("llama3"), "<|eot_id|>"),
    "mistralai-Mistral-Nemo-Instruct-2407": (Style("mistral"), "</s>"),
    "openai-gpt-oss-120b": (Style("harmony"), "<|call|>"),
}
CALLING = sorted(name for name, (style, _) in TEMPLATES.items() if style.calls != "plain")
ONE_CALL = ("llama3", "harmony")  # their templates take no more
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
QUESTION = {"role": "user", "content": "Weather in Zürich?"}
ARGUMENTS: dict[str, Any] = {"place": 'Zürich "<tool_call>" \\ {', "days": 2, "unit": "C"}


@pytest.fixture(scope="module")
def sources(data: Path) -> dict[str, str]:
    folder = data / "tokenizers" / "chat-templates"
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.jinja"))}


def rendered(source: str, *messages: dict[str, Any], **more: Any) -> str:
    template = ChatTemplate({"default": source}, SPECIAL, isolated=False)
    return template.render([QUESTION, *messages], tools=[tool_fields(tool) for tool in TOOLS], **more)


def assistant(names_and_arguments: list[tuple[str, dict[str, Any]]], ids: Iterator[str]) -> dict[str, Any]:
    calls = [
        {"id": next(ids), "type": "function", "function": {"name": name, "arguments": arguments}}
        for name, arguments in names_and_arguments
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def test_every_template_at_hand_is_listed(sources: dict[str, str]):
    assert sorted(sources) == sorted(TEMPLATES)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_style_is_found(sources: dict[str, str], name: str):
    try:
        prompt = rendered(sources[name])
    except ValueError:  # a template that takes no tools
        prompt = ChatTemplate({"default": sources[name]}, SPECIAL, isolated=False).render([QUESTION])
    assert detect(sources[name], prompt[-64:]) == TEMPLATES[name][0]


def test_reasoning_that_the_prompt_opens_and_closes(sources: dict[str, str]):
    source = sources["deepseek-ai-DeepSeek-V3.1"]
    assert detect(source, rendered(source, variables={"thinking": True})).opened
    source = sources["Qwen-Qwen3-0.6B"]
    assert not detect(source, rendered(source, variables={"enable_thinking": False})).opened


@pytest.mark.parametrize("name", CALLING)
@pytest.mark.parametrize("several", [False, True])
def test_calls_come_back(sources: dict[str, str], name: str, several: bool):
    style, end = TEMPLATES[name]
    calls = [(WEATHER.name, ARGUMENTS), (NOW.name, {})]
    if several and style.calls in ONE_CALL:
        with pytest.raises(ValueError, match="single tool-calls") if style.calls == "llama3" else pytest.raises(AssertionError):
            answer_of(sources[name], calls, end, style)
        return
    calls = calls if several else calls[:1]
    answer = answer_of(sources[name], calls, end, style)
    for texts in ([answer], answer):
        told = read(Style(style.calls, style.think), *texts)
        assert (told.reasoning, told.content) == (None, None)
        assert [(called, json.loads(arguments)) for called, arguments in told.calls] == calls


def answer_of(source: str, calls: list[tuple[str, dict[str, Any]]], end: str, style: Style) -> str:
    """What the template has the model say, where the template's own prompt for an answer ends."""
    said = assistant(calls, iter(("abcdefgh1", "abcdefgh2")))
    show = unbounded if style.calls == "kimi" or style.opened else rendered
    full, head = show(source, said, add_generation_prompt=False), show(source, add_generation_prompt=True)
    if not full.startswith(head):  # the start of the reasoning stands in prompts alone
        head = head.rpartition("<think>")[0]
    assert full.startswith(head)
    answer = full[len(head) :]
    assert all(name in answer for name, _ in calls), "the template shows one call"
    return answer.partition(end)[0]


def unbounded(source: str, *messages: dict[str, Any], add_generation_prompt: bool) -> str:
    """As jinja2 renders it by itself, for two templates whose calls the library's renderer, like transformers', does not show.

    Kimi's changes a list, which the sandbox refuses; R1's shows calls only beside a content that is None, and JSON text.
    """
    said = [{**each, "content": None, "tool_calls": [as_text(call) for call in each["tool_calls"]]} for each in messages]
    environment = jinja2.sandbox.SandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(source)
    return template.render(messages=[QUESTION, *said], tools=[], add_generation_prompt=add_generation_prompt, **SPECIAL)


def as_text(call: dict[str, Any]) -> dict[str, Any]:
    arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return {**call, "function": {**call["function"], "arguments": arguments}}


@pytest.mark.parametrize(
    ("source", "tail", "style"),
    [
        ("... [TOOL_CALLS] ... [THINK] ...", "[/INST]", Style("mistral", MISTRAL_THINK)),
        ("<tool_call>\n<function=example_function_name>", "<|im_start|>assistant\n<think>\n", Style("coder")),
        ("<tool_call> <think>", "<|im_start|>assistant\n<think>\n", Style("hermes", THINK, opened=True)),
        ("[func_name1(params_name1=params_value1", "", Style("pythonic")),
        ("<tool_call>{name}<arg_key>", "", Style("plain")),
        ("{{ messages }}", "<think>", Style("plain")),
    ],
)
def test_styles_of_other_templates(source: str, tail: str, style: Style):
    assert detect(source, tail) == style


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_marks_that_are_special_tokens_are_asked_for(name: str):
    style = TEMPLATES[name][0]
    assert style.needs_special_tokens == (style.calls in ("harmony", "deepseek", "kimi", "mistral"))
