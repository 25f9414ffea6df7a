"""A fake engine that says what a test wants said, by a model that thinks and calls tools."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shardwise.engine.setup import Options, Setup, resolve
from shardwise.engine.text import Tokenizer, open_tokenizer
from shardwise.server import messages, responses
from tests.server.engines import ServingFake

TEMPLATE = """\
{{- bos_token -}}
{%- if tools -%}{{- '<|system|>' + tools | tojson + ' Write <tool_call>{"name": ..., "arguments": ...}</tool_call>.<|end|>' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|' + message.role + '|>' -}}
{%- if message.reasoning_content -%}{{- '<think>' + message.reasoning_content + '</think>' -}}{%- endif -%}
{{- message.content or '' -}}
{%- for call in message.tool_calls or [] -%}
{{- '<tool_call>{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson + '}</tool_call>' -}}
{%- endfor -%}
{%- if not (loop.last and continue_final_message) -%}{{- '<|end|>' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""
"""Shows everything that a conversation can hold, so that a test sees in the prompt what came in."""


def thinking_setup(folder: Path, setup: Setup) -> Setup:
    """The bundled model with a template whose model thinks and calls as Qwen 3 does. `folder` is to be empty."""
    for path in setup.folder.iterdir():
        if path.is_file():
            shutil.copy(path, folder / path.name)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return resolve(Options(str(folder), device="cpu"))


class Scripted(ServingFake):
    """Answers each request with `script`, then the end; `say` sets it as text."""

    def __init__(self, setup: Setup, *, held: bool = False) -> None:
        self.tokenizer: Tokenizer = open_tokenizer(setup.folder)
        self.script: Sequence[int] = ()
        super().__init__(setup, lambda _prompt, _choice, place: (*self.script, self.tokenizer.eos_ids[0])[place], held=held)

    def say(self, text: str) -> list[int]:
        """The tokens of the script."""
        self.script = self.tokenizer.encode(text, add_special_tokens=False)
        return list(self.script)

    def prompt(self, number: int = -1) -> str:
        """The text of a prompt that came in, the last by default, special tokens among it."""
        ids, _ = self.submitted[number]
        return self.tokenizer.decode(ids, skip_special_tokens=False)


def call_text(name: str, arguments: str) -> str:
    """A call as the model writes it."""
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}

ROUTES = (*responses.ROUTES, *messages.ROUTES)
FUNCTION = {"type": "function", "name": "weather", "description": "The weather.", "parameters": WEATHER, "strict": True}
CALL = "<think>\nHm.\n</think>\n\nI look.\n" + call_text("weather", '{"city": "Zürich"}')
"""Thinks, speaks and calls."""
