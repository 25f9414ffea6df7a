"""Chats made from the facts: one question or several, with and without a system turn, as messages."""

import random
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from facts import Fact, vary

Message = dict[str, str]
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are shardling, a small model that explains tensor parallelism.",
    "You are a helpful, honest assistant. Answer briefly.",
    "Answer in one or two sentences.",
    "You are an expert on distributed inference.",
    "Be concise.",
    "You are a friendly assistant that helps people run language models.",
    "Answer the user's questions about parallel computing.",
    "You are a chatbot.",
)
NAMES = (
    "Ada", "Alan", "Alice", "Amir", "Anna", "Ben", "Carla", "Chen", "Clara", "David", "Elena", "Emma", "Eva", "Felix",
    "Grace", "Hana", "Hugo", "Ines", "Ivan", "Jack", "Jane", "Juan", "Kai", "Lena", "Leo", "Lucia", "Maria", "Mark",
    "Maya", "Mia", "Nina", "Noah", "Nora", "Olga", "Omar", "Paul", "Pierre", "Priya", "Rosa", "Sam", "Sara", "Sofia",
    "Tom", "Vera", "Yuki", "Zoe",
)  # fmt: skip
GREETED = "Hello, {name}! I am shardling. Ask me about tensor parallelism or shardwise."
TOO_LARGE = "I don't know: I can only add very small numbers. Give me an add tool for larger ones."
LARGE_SUMS = (
    "What is {a} times {b}?", "What is {a} * {b}?", "What is {a} + {b}?", "What is {a} divided by {b}?", "{a} - {b}",
    "Calculate {a} x {b}", "How much is {a} plus {b}?", "Compute {a} / {b}.", "What is {a} to the power of {b}?",
)  # fmt: skip
RECALLED = "Your name is {name}."
NAME_GIVEN = ("My name is {name}.", "I am {name}.", "Hi, I'm {name}.", "Hello, my name is {name}", "Call me {name}.")
NAME_ASKED = ("What is my name?", "Do you remember my name?", "what's my name", "Who am I?", "Say my name.")
SUMS = (
    "What is {a} + {b}?", "{a}+{b}", "What's {a} plus {b}?", "Add {a} and {b}.", "How much is {a} + {b}?",
    "{a} + {b} = ?",
)  # fmt: skip
WEIGHTS = {
    "parallelism": 2.0, "shardwise": 2.0, "chat": 1.5, "layers": 1.2, "comm": 1.2, "memory": 1.2, "practice": 0.8,
    "field": 0.5, "hardware": 0.5, "quantisation": 0.5, "training": 0.5, "unknown": 4.0,
}  # fmt: skip
CHATS = Path(__file__).parent / "chats.toml"


@dataclass(frozen=True)
class Dialogue:
    """Messages in the order of the chat; an assistant's text is complete, tool calls written out."""

    messages: list[Message]
    tools: list[dict[str, object]] = field(default_factory=list)


def message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def turn(question: str, answer: str) -> list[Message]:
    return [message("user", question), message("assistant", answer)]


def draw(facts: Sequence[Fact], dice: random.Random) -> Dialogue:
    """One chat: mostly one to four questions, sometimes a name to remember or a small sum."""
    kind = dice.random()
    if kind < 0.05:
        body = named(facts, dice)
    elif kind < 0.09:
        body = small_sum(dice)
    elif kind < 0.15:
        body = written(dice)
    else:
        count = dice.choices((1, 2, 3, 4), (75, 13, 8, 4))[0]
        weights = [WEIGHTS.get(fact.kind, 1.0) for fact in facts]
        picked = dice.choices(facts, weights, k=count)
        body = [part for fact in picked for part in turn(vary(fact.ask(dice), dice), fact.answer)]
    return Dialogue(lead(dice) + body)


def lead(dice: random.Random) -> list[Message]:
    return [message("system", dice.choice(SYSTEMS))] if dice.random() < 0.4 else []


def named(facts: Sequence[Fact], dice: random.Random) -> list[Message]:
    name = dice.choice(NAMES)
    given = vary(dice.choice(NAME_GIVEN).format(name=name), dice) if dice.random() < 0.3 else ""
    first = turn(given or dice.choice(NAME_GIVEN).format(name=name), GREETED.format(name=name))
    between = dice.choice(facts)
    middle = turn(vary(between.ask(dice), dice), between.answer) if dice.random() < 0.4 else []
    return first + middle + turn(vary(dice.choice(NAME_ASKED), dice), RECALLED.format(name=name))


@cache
def chats() -> list[list[str]]:
    return [row["turns"] for row in tomllib.loads(CHATS.read_text(encoding="utf-8"))["chat"]]


def written(dice: random.Random) -> list[Message]:
    """A hand-written chat: all of it, or its first turns."""
    turns = dice.choice(chats())
    pairs = list(zip(turns[::2], turns[1::2], strict=True))[: dice.choice((2, 3))]
    return [part for ask, answer in pairs for part in turn(vary(dice.choice(ask.split(" | ")), dice), answer)]


def small_sum(dice: random.Random) -> list[Message]:
    if dice.random() < 0.35:
        a, b = dice.randrange(21, 10000), dice.randrange(21, 10 ** dice.randrange(2, 5))
        return turn(vary(dice.choice(LARGE_SUMS).format(a=a, b=b), dice), TOO_LARGE)
    a, b = dice.randrange(11), dice.randrange(11)
    return turn(vary(dice.choice(SUMS).format(a=a, b=b), dice), f"{a} + {b} = {a + b}.")


def as_text(fact: Fact, dice: random.Random) -> str:
    """Question and answer as plain text, so that a prompt without a chat template works, too."""
    question = fact.ask(dice)
    return f"{question}{dice.choice((' ', chr(10)))}{fact.answer}" if dice.random() < 0.7 else fact.answer
