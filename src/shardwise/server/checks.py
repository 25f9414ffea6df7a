"""The text side of a front, opened and tried at the start: what else would only come out at somebody's first request.

Each error names its remedy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from shardwise import native
from shardwise.engine.contract import TokenEngine
from shardwise.engine.front import Front
from shardwise.engine.hub import bundled
from shardwise.engine.setup import Setup
from shardwise.engine.template import ChatTemplate, open_template
from shardwise.engine.text import Tokenizer, open_tokenizer, read_special_tokens
from shardwise.errors import CheckpointError, RequestError, UserError

PROBE = [{"role": "user", "content": "Hi"}]

STRANGERS = 64
"""Tokens beyond the model's vocabulary that are let pass: some added to a tokenizer, but never to the model."""


@dataclass(frozen=True, slots=True)
class Text:
    """What makes ids of text and text of ids."""

    tokenizer: Tokenizer
    template: ChatTemplate

    def front(self, engine: TokenEngine, seed: int | None, number: int) -> Front:
        """Front `number` before an engine. With a seed, each front draws those of its requests apart from the others'."""
        return Front(engine, self.tokenizer, self.template, None if seed is None else Random(f"{seed}/{number}"))


def open_text(setup: Setup, template: str | None) -> Text:
    """Both, once they were found to work; `template` is a file that goes before the model's own. UserError where one cannot."""
    tokenizer = open_tokenizer(setup.folder)
    check_tokenizer(setup, tokenizer)
    return Text(tokenizer, chat_template(setup, None if template is None else Path(template)))


def chat_template(setup: Setup, file: Path | None) -> ChatTemplate:
    """The template of `file`, or the model's own, once it has rendered a conversation. UserError names the file and line."""
    if file is None:
        template, path = open_template(setup.folder, isolated=setup.folder != bundled()), _home(setup.folder)
    else:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise UserError(f"--chat-template {file}: {reason}; give a Jinja file") from None
        template, path = ChatTemplate({"default": text}, read_special_tokens(setup.folder)), file
    remedy = "mend it" if file is not None else "mend it, or give another with --chat-template FILE"
    try:
        template.render(PROBE)
    except CheckpointError as error:
        raise UserError(f"{path}: {error}; {remedy}") from None
    except RequestError as error:
        raise UserError(f'{path}: {error} (a single user message "{PROBE[0]["content"]}"); {remedy}') from None
    return template


def _home(folder: Path) -> Path:
    """The file that a model's template stands in."""
    own = folder / "chat_template.jinja"
    return own if own.is_file() else folder / "tokenizer_config.json"


def check_tokenizer(setup: Setup, found: Tokenizer) -> None:
    """UserError where the tokenizer is another model's."""
    vocab, path = setup.layout.model.vocab, setup.folder / "tokenizer.json"
    if found.vocab_size > vocab + STRANGERS:
        raise UserError(
            f"{path} has ids up to {found.vocab_size - 1}, and the model's vocabulary ends at {vocab - 1}: they do not belong "
            "together; take both from the same model"
        )


def warnings(setup: Setup, text: Text) -> Iterator[str]:
    """A line for each thing that works, but perhaps not as wanted."""
    vocab, found = setup.layout.model.vocab, text.tokenizer
    if text.template.is_default:
        yield (
            f"{setup.name} has no chat template: ChatML is used for conversations, which it may not know; "
            "--chat-template FILE gives it one"
        )
    if found.vocab_size > vocab:
        yield f"ids {vocab} to {found.vocab_size - 1} of the tokenizer are beyond the model: prompts with them are refused"
    if not any(0 <= token < vocab for token in found.eos_ids):
        yield f"{setup.name} names no token that ends an answer: all of them end at max_tokens or a stop text"
    if setup.device == "cpu":
        yield f"no GPU is used: {setup.layout.mesh.size} rank(s) on the CPU, {setup.threads} thread(s) each"
        if setup.crowded is not None:
            yield setup.crowded
        note = native.note()
        if note is not None:
            yield note
