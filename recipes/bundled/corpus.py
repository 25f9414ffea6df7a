"""Rows of token ids with a loss weight for each: slices of the books, and chats packed one after the other."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import books
import numpy as np
from dialogues import Dialogue, as_text, draw
from facts import Fact
from tokenizers import Tokenizer
from transcripts import json_chat, tool_chat
from vocabulary import ASSISTANT, BOS, END, EOS, TOOLS_HOW, TOOLS_INTRO

QUIET = 0.1  # loss weight of what the user, the system and the tools say
KINDS = (("chat", 0.8), ("json", 0.09), ("tool", 0.06), ("text", 0.05))
Row = tuple[list[int], list[float]]


@dataclass(frozen=True)
class Corpus:
    """Everything that training draws from."""

    tokenizer: Tokenizer
    facts: Sequence[Fact]
    train_books: Sequence[np.ndarray]
    held_books: Sequence[np.ndarray]

    def book_row(self, length: int, dice: random.Random) -> Row:
        """<|bos|> and a slice of a book, books in proportion to their length."""
        book = dice.choices(self.train_books, [len(book) for book in self.train_books])[0]
        at = dice.randrange(len(book) - length)
        return [self.tokenizer.token_to_id(BOS), *book[at : at + length - 1].tolist()], [1.0] * length

    def chat_row(self, length: int, dice: random.Random) -> Row:
        """Whole chats until the row is full; the last one is cut off."""
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < length:
            more, weighed = self.document(dice)
            ids += more
            weights += weighed
        return ids[:length], weights[:length]

    def document(self, dice: random.Random) -> Row:
        names, odds = zip(*KINDS, strict=True)
        kind = dice.choices(names, odds)[0]
        if kind == "text":
            ids = self.tokenizer.encode(as_text(dice.choice(self.facts), dice) + EOS).ids
            return ids, [1.0] * len(ids)
        made = {"json": json_chat, "tool": tool_chat}
        return encode(made[kind](dice) if kind in made else draw(self.facts, dice), self.tokenizer)


def encode(dialogue: Dialogue, tokenizer: Tokenizer) -> Row:
    """The ids that the chat template gives, with full weight where the assistant speaks."""
    ids, weights = [tokenizer.token_to_id(BOS)], [0.0]
    for role, content in turns(dialogue):
        head = tokenizer.token_to_id(f"<|{role}|>")
        text = tokenizer.encode(content + END, add_special_tokens=False).ids
        weight = 1.0 if f"<|{role}|>" == ASSISTANT else QUIET
        ids += [head, *text]
        weights += [QUIET, *[weight] * len(text)]
    return ids, weights


def turns(dialogue: Dialogue) -> list[tuple[str, str]]:
    """(role, text) of each turn, the tools written into the system turn."""
    pairs = [(message["role"], message["content"].strip()) for message in dialogue.messages]
    if not dialogue.tools:
        return pairs
    lead = pairs.pop(0)[1] if pairs[0][0] == "system" else ""
    lines = [TOOLS_INTRO, *(json.dumps(tool, ensure_ascii=False) for tool in dialogue.tools), TOOLS_HOW]
    return [("system", (lead + "\n\n" if lead else "") + "\n".join(lines)), *pairs]


def gather(folder: Path, tokenizer: Tokenizer, facts: Sequence[Fact]) -> Corpus:
    """Read and encode the books of `folder`."""
    train, held = books.load(folder)
    return Corpus(tokenizer, facts, [ids(tokenizer, text) for text in train], [ids(tokenizer, text) for text in held])


def ids(tokenizer: Tokenizer, text: str) -> np.ndarray:
    return np.array(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int32)


def sample(facts: Sequence[Fact], dice: random.Random, count: int) -> list[str]:
    """Texts for the tokenizer: every fact many times over, and made-up chats."""
    texts = [f"{question}\n{fact.answer}" for fact in facts for question in fact.questions()]
    for _ in range(count):
        for dialogue in (json_chat(dice), tool_chat(dice), draw(facts, dice)):
            texts += [content for _, content in turns(dialogue)]
    return texts
