"""What the page of the documents shows first: requests that people copy. Each works with any model, the bundled one too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A POST of `body` at `path`."""

    title: str
    path: str
    body: dict[str, Any]


def asked(question: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], **fields}


RECIPES = (
    Recipe("A question", CHAT, asked("What is your name?", max_tokens=60)),
    Recipe("The answer as it comes", CHAT, asked("Tell me a story.", max_tokens=60, stream=True)),
    Recipe(
        "An answer that is JSON of a schema",
        CHAT,
        asked(
            "Who are you?",
            max_tokens=100,
            response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}},
        ),
    ),
    Recipe(
        "A function that the model has to call",
        CHAT,
        asked("How is the weather in Paris?", tools=[WEATHER], tool_choice="required", max_tokens=100),
    ),
    Recipe("One of several answers", CHAT, asked("Is the sky blue?", structured_outputs={"choice": ["yes", "no"]})),
    Recipe(
        "How likely each token of a text is",
        TEXT,
        {"prompt": "Once upon a time", "echo": True, "logprobs": 1, "max_tokens": 0},
    ),
)
