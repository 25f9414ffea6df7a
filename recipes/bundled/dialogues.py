"""Chats made from the facts: one question or several, with and without a system turn, as messages."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

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
RECALLED = "Your name is {name}."
NAME_GIVEN = ("My name is {name}.", "I am {name}.", "Hi, I'm {name}.", "Hello, my name is {name}", "Call me {name}.")
NAME_ASKED = ("What is my name?", "Do you remember my name?", "what's my name", "Who am I?", "Say my name.")
SUMS = ("What is {a} + {b}?", "{a}+{b}", "What's {a} plus {b}?", "Add {a} and {b}.", "How much is {a} + {b}?", "{a} + {b} = ?")
WEIGHTS = {"chat": 0.7, "unknown": 1.3}


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


def small_sum(dice: random.Random) -> list[Message]:
    a, b = dice.randrange(11), dice.randrange(11)
    return turn(vary(dice.choice(SUMS).format(a=a, b=b), dice), f"{a} + {b} = {a + b}.")


def as_text(fact: Fact, dice: random.Random) -> str:
    """Question and answer as plain text, so that a prompt without a chat template works, too."""
    question = fact.ask(dice)
    return f"{question}{dice.choice((' ', chr(10)))}{fact.answer}" if dice.random() < 0.7 else fact.answer
