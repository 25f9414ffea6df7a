"""How a model writes its reasoning and its calls, found in its chat template: no table of model names, no flag to set."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from shardwise.server.answer.tape import SPACE

Dialect: TypeAlias = Literal["hermes", "coder", "llama3", "mistral", "pythonic", "deepseek", "kimi", "harmony", "plain"]
"""`plain` is for all models whose own way is not known: content, or a JSON list of calls where a grammar asks for calls."""

THINK = ("<think>", "</think>")
MISTRAL_THINK = ("[THINK]", "[/THINK]")

_SIGNS: tuple[tuple[Dialect, str], ...] = (
    ("harmony", r"<\|channel\|>"),
    ("deepseek", "<｜tool▁calls▁begin｜>"),
    ("kimi", r"<\|tool_calls_section_begin\|>"),
    ("coder", "<function="),
    ("plain", "<arg_key>"),  # GLM's calls, in Hermes' marks
    ("hermes", "<tool_call>"),
    ("mistral", r"\[TOOL_CALLS\]"),
    ("pythonic", r"<\|python_start\|>|<\|tool_call_start\|>|func_name1\(params_name1"),
    ("llama3", r"<\|python_tag\|>|\"parameters\": .*ipython"),
)
"""What a template says where its model writes so, the surer sign first."""


@dataclass(frozen=True, slots=True)
class Style:
    """How answers are written. `think`: the marks around reasoning. `opened`: the prompt ends behind the first of them;
    `closed`: behind the last, so the model is not to reason."""

    calls: Dialect = "plain"
    think: tuple[str, str] | None = None
    opened: bool = False
    closed: bool = False

    @property
    def needs_special_tokens(self) -> bool:
        """Whether special tokens must be left in the text, because marks are among them."""
        return self.calls in ("harmony", "deepseek", "kimi", "mistral") or self.think == MISTRAL_THINK


def detect(template_source: str, rendered_prompt_tail: str) -> Style:
    """The style of a model by its chat template and the end of the prompt (some dozen characters are enough)."""
    calls: Dialect = "plain"
    for dialect, sign in _SIGNS:
        if re.search(sign, template_source, re.DOTALL):
            calls = dialect
            break
    if calls == "harmony":
        return Style(calls)
    think = next((marks for marks in (MISTRAL_THINK, THINK) if any(mark in template_source for mark in marks)), None)
    if think is None:
        return Style(calls)
    tail = rendered_prompt_tail.rstrip(SPACE)
    return Style(calls, think, tail.endswith(think[0]), tail.endswith(think[1]))
