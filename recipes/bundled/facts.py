"""Questions and answers from facts/*.toml, and the ways in which a person may word, spell and case a question."""

import random
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "facts"

TOPIC_FORMS = (
    "What is {t}?",
    "What's {t}?",
    "What is {t}, in short?",
    "What does {t} mean?",
    "What do you mean by {t}?",
    "What do people mean by {t}?",
    "Explain {t}.",
    "Explain {t} to me",
    "Can you explain {t}?",
    "Could you explain what {t} is?",
    "Tell me about {t}.",
    "Tell me what {t} is",
    "Define {t}.",
    "Describe {t}.",
    "I want to know what {t} is.",
    "I have never heard of {t}. What is it?",
    "{t}?",
    "Do you know what {t} is?",
    "What is meant by {t}?",
    "Give me a short explanation of {t}.",
)
BEFORE = (
    "Hi, ", "Hello! ", "Hey, ", "Please tell me: ", "Quick question: ", "Question: ", "Sorry, ", "So, ", "OK. ", "And ",
    "Can you tell me: ", "I wonder: ", "One more question: ", "Well, ", "A question: ",
)  # fmt: skip
AFTER = (
    " Please.", " Thanks!", " Thank you.", " please", " Be brief.", " Answer in a sentence.", " Briefly.", " thanks",
)  # fmt: skip
DROPPABLE = frozenset(("the", "a", "an", "is", "do", "does", "of", "me", "please", "that", "so", "it"))


@dataclass(frozen=True)
class Fact:
    """One answer and its questions; `held` ones are never trained on, `topic` adds the questions of TOPIC_FORMS."""

    asks: tuple[str, ...]
    answer: str
    held: tuple[str, ...]
    topic: str
    kind: str

    def questions(self) -> tuple[str, ...]:
        forms = tuple(form.format(t=self.topic) for form in TOPIC_FORMS) if self.topic else ()
        held = {plain(question) for question in self.held}
        return tuple(question for question in self.asks + forms if plain(question) not in held)

    def ask(self, dice: random.Random) -> str:
        """A question for this fact: hand-written ones and topic forms in equal parts."""
        if self.topic and dice.random() < 0.5:
            return dice.choice(self.questions()[len(self.asks) :] or self.asks)
        return dice.choice(self.asks)


def load(folder: Path = FOLDER) -> list[Fact]:
    """All facts, in the order of the files' names. A question that two facts answer is an error."""
    facts = []
    for path in sorted(folder.glob("*.toml")):
        for row in tomllib.loads(path.read_text(encoding="utf-8"))["fact"]:
            facts.append(read(row, path.stem))
    check(facts)
    return facts


def read(row: dict[str, str | list[str]], kind: str) -> Fact:
    asks, held = row["ask"], row.get("held", [])
    answer = " ".join(str(row["answer"]).split())
    return Fact(tuple(asks), answer, (held,) if isinstance(held, str) else tuple(held), str(row.get("topic", "")), kind)


def check(facts: Sequence[Fact]) -> None:
    seen: dict[str, str] = {}
    for fact in facts:
        for question in fact.questions() + fact.held:
            if seen.setdefault(plain(question), fact.answer) != fact.answer:
                raise ValueError(f"two facts answer {question!r}")


def plain(question: str) -> str:
    """The question without case and punctuation, for comparing."""
    return " ".join("".join(c for c in question.lower() if c.isalnum() or c == " ").split())


def vary(question: str, dice: random.Random) -> str:
    """The same question as another person would type it: case, punctuation, politeness, a slip of the finger."""
    if dice.random() < 0.12:
        question = drop_word(question, dice)
    if dice.random() < 0.15:
        head = question if question[:2].isupper() else question[:1].lower() + question[1:]
        question = dice.choice(BEFORE) + head
    if dice.random() < 0.35:
        question = question.rstrip("?.")
    if dice.random() < 0.08:
        question += dice.choice(AFTER)
    if dice.random() < 0.3:
        question = question.lower()
    if dice.random() < 0.06:
        question = slip(question, dice)
    return question


def drop_word(question: str, dice: random.Random) -> str:
    words = question.split(" ")
    spare = [i for i, word in enumerate(words) if word.lower() in DROPPABLE]
    if spare:
        del words[dice.choice(spare)]
    return " ".join(words)


def slip(question: str, dice: random.Random) -> str:
    """Drop one letter or exchange two."""
    at = dice.randrange(max(1, len(question) - 2))
    if dice.random() < 0.5:
        return question[:at] + question[at + 1 :]
    return question[:at] + question[at + 1 : at + 2] + question[at : at + 1] + question[at + 2 :]
