"""Asks a trained shardling what it never saw verbatim, and prints a table of answers and counts. Greedy, fp32."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import facts as questions
import torch
from dialogues import Message, message
from transcripts import ADD, SEARCH, TOOLS, WEATHER, Json
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

NAMED = ("What is tensor parallelism?", "Why is TP=8 slower than TP=4?")
JSON_ASKS = (
    ("Give me a JSON object with a name and an age.", {"name", "age"}),
    ("Give me a JSON object with name Ada and age 36", {"name", "age"}),
    ("Return JSON with city = Rome, colour: green and count 7.", {"city", "colour", "count"}),
    ("Please answer in JSON with a topic and a year", {"topic", "year"}),
    ("I need JSON with the key tags and the key ok.", {"tags", "ok"}),
    ("json please", {"name", "heads", "ok"}),
)
TOOL_ASKS = (
    ("What's the weather like in Vienna?", (WEATHER,), {"name": "get_weather", "arguments": {"city": "Vienna"}}),
    ("Please tell me the weather in Tokyo", TOOLS, {"name": "get_weather", "arguments": {"city": "Tokyo"}}),
    ("What is 12 + 30?", (ADD,), {"name": "add", "arguments": {"a": 12, "b": 30}}),
    ("Can you add 7 and 58?", TOOLS, {"name": "add", "arguments": {"a": 7, "b": 58}}),
    ("Please search for attention", (SEARCH,), {"name": "search", "arguments": {"query": "attention"}}),
    ("Look up NVLink for me", TOOLS, {"name": "search", "arguments": {"query": "NVLink"}}),
)  # fmt: skip
ALIKE = 0.8  # of the words, in order
SHOWN = 110


@dataclass(frozen=True)
class Asked:
    """A prompt, what it should give, and what came: `ended` says that the end token was reached."""

    prompt: str
    right: bool
    ended: bool
    answer: str


class Model:
    """A model folder that answers chats."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def answer(self, chats: Sequence[list[Message]], tools: Sequence[Json] = ()) -> list[tuple[str, bool]]:
        """(answer, ended) for each chat, at most 160 new tokens each."""
        prompts = [
            self.tokenizer.apply_chat_template(
                chat, tools=list(tools) or None, tokenize=False, add_generation_prompt=True
            )
            for chat in chats
        ]  # fmt: skip
        batch = self.tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        out = self.model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], do_sample=False, max_new_tokens=160
        )
        ends = self.model.generation_config.eos_token_id
        new = [row[batch["input_ids"].shape[1] :].tolist() for row in out]
        texts = [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in new]
        return [(text, any(end in row for end in ends)) for text, row in zip(texts, new, strict=True)]


def facts_asked(model: Model, pairs: Sequence[tuple[str, str]], group: int = 16) -> list[Asked]:
    """Ask each (question, expected answer) alone."""
    found = []
    for at in range(0, len(pairs), group):
        some = pairs[at : at + group]
        answers = model.answer([[message("user", question)] for question, _ in some])
        found += [
            Asked(question, alike(expected, text), ended, text)
            for (question, expected), (text, ended) in zip(some, answers, strict=True)
        ]
    return found


def alike(expected: str, answer: str) -> bool:
    """Whether the answer says what was expected, nearly word for word."""
    return SequenceMatcher(None, expected.split(), answer.split()).ratio() >= ALIKE


def json_asked(model: Model, exact: bool) -> list[Asked]:
    """Right is what parses or, if `exact`, what parses and has the wished keys and no others."""
    found = []
    for ask, keys in JSON_ASKS:
        text, ended = model.answer([[message("user", ask)]])[0]
        value = parsed(text)
        found.append(Asked(ask, value is not None and (not exact or set(value) == keys), ended, text))
    return found


def tools_asked(model: Model) -> list[Asked]:
    found = []
    for ask, tools, expected in TOOL_ASKS:
        text, ended = model.answer([[message("user", ask)]], tools)[0]
        inner = text.removeprefix("<tool_call>").removesuffix("</tool_call>")
        found.append(Asked(ask, parsed(inner) == expected, ended, text))
    return found


def parsed(text: str) -> Json | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def table(title: str, found: Sequence[Asked], whole: bool) -> None:
    right = sum(row.right and row.ended for row in found)
    print(f"\n{title}: {right} of {len(found)} right and ended")
    for row in found:
        text = row.answer if whole or len(row.answer) <= SHOWN else row.answer[:SHOWN] + "..."
        print(f"  {'ok   ' if row.right and row.ended else 'WRONG'} | {row.prompt} | {text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--whole", action="store_true", help="print whole answers")
    args = parser.parse_args()
    torch.set_num_threads(2)
    model = Model(args.model)
    facts = questions.load()
    answers = {question: fact.answer for fact in facts for question in fact.questions()}
    held = [(question, fact.answer) for fact in facts for question in fact.held]
    table("named questions", facts_asked(model, [(ask, answers[ask]) for ask in NAMED]), args.whole)
    table("held-out paraphrases", facts_asked(model, held), args.whole)
    table("JSON that parses", json_asked(model, exact=False), args.whole)
    table("JSON with the wished keys", json_asked(model, exact=True), args.whole)
    table("tool calls", tools_asked(model), args.whole)


if __name__ == "__main__":
    main()
