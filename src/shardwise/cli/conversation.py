"""A conversation that stays within the context: system message, turns, and the prompt that they make."""

from __future__ import annotations

import sys

from shardwise.engine.hub import bundled
from shardwise.engine.setup import Setup
from shardwise.engine.template import open_template
from shardwise.engine.text import Tokenizer
from shardwise.errors import RequestError

ANSWER_TOKENS = 256
"""Old turns make way until an answer may have so many tokens, or a quarter of a small context."""


class Conversation:
    """The turns so far. A question is part of them once it has an answer."""

    def __init__(self, setup: Setup, tokenizer: Tokenizer, system: str | None = None) -> None:
        # What came with shardwise needs no guard; a stranger's template runs in a process of its own.
        self._template = open_template(setup.folder, isolated=setup.folder != bundled())
        self._tokenizer = tokenizer
        self._context = setup.context
        self._turns: list[tuple[str, str]] = []
        self.system = system
        if self._template.is_default:
            sys.stderr.write(
                f"{setup.name} has no chat template; ChatML is used, which it may not know. "
                "`shardwise generate` continues plain text\n"
            )

    @property
    def stops(self) -> tuple[str, ...]:
        """What ends an answer besides the model's own end tokens."""
        return ("<|im_end|>",) if self._template.is_default else ()

    def prompt(self, question: str) -> tuple[list[int], int]:
        """(ids of the prompt that ends with `question`, how many of the oldest turns were dropped for it).

        RequestError where the question alone is too long.
        """
        room = min(ANSWER_TOKENS, self._context // 4)
        for dropped in range(len(self._turns) + 1):
            ids = self._rendered(self._turns[dropped:], question)
            if len(ids) + room <= self._context:
                break
        if len(ids) >= self._context:
            raise RequestError(
                f"the message makes a prompt of {len(ids)} tokens; the context is {self._context} with the answer"
            )
        del self._turns[:dropped]
        return ids, dropped

    def answered(self, question: str, answer: str) -> None:
        """Remembers a turn."""
        self._turns.append((question, answer))

    def reset(self) -> None:
        """Forgets all turns; the system message stays."""
        self._turns.clear()

    def _rendered(self, turns: list[tuple[str, str]], question: str) -> list[int]:
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for asked, answer in turns:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        messages.append({"role": "user", "content": question})
        return self._tokenizer.encode(self._template.render(messages), add_special_tokens=False)
