"""litellm, which speaks to this server as to any that is OpenAI's."""

from __future__ import annotations

from typing import Any

import litellm
from checks import KEY, MODEL, URL, check, raised, run

WHERE: Any = {"api_base": f"{URL}/v1", "api_key": KEY, "max_retries": 0, "timeout": 120}
ASKED: Any = {
    **WHERE,
    "model": f"openai/{MODEL}",
    "messages": [{"role": "user", "content": "What is your name?"}],
    "max_tokens": 12,
    "temperature": 0,
}


@check
def completion() -> None:
    answer = litellm.completion(**ASKED)
    assert answer.choices[0].message.content and answer.usage.completion_tokens <= 12


@check
def completion_streamed_is_the_same() -> None:
    whole = litellm.completion(**ASKED).choices[0].message.content
    parts = litellm.completion(**ASKED, stream=True, stream_options={"include_usage": True})
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == whole


@check
async def acompletion() -> None:
    assert (await litellm.acompletion(**ASKED)).choices[0].message.content


@check
def text_completion() -> None:
    asked = {key: value for key, value in ASKED.items() if key != "messages"}
    assert litellm.text_completion(**{**asked, "model": f"text-completion-openai/{MODEL}"}, prompt="Once").choices[0].text


@check
def tools() -> None:
    parameters = {"type": "object", "properties": {"city": {"enum": ["Paris"]}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
    answer = litellm.completion(**{**ASKED, "max_tokens": 60}, tools=[tool], tool_choice="required")
    assert answer.choices[0].message.tool_calls[0].function.name == "weather"


@check
def embedding() -> None:
    for form in ("float", "base64"):
        told = litellm.embedding(**WHERE, model=f"openai/{MODEL}", input=["a cat", "a dog"], encoding_format=form)
        assert len(told.data) == 2 and told.data[0]["embedding"]


@check
def exceptions() -> None:
    raised(litellm.NotFoundError, lambda: litellm.completion(**{**ASKED, "model": "openai/nobody"}))
    raised(litellm.AuthenticationError, lambda: litellm.completion(**{**ASKED, "api_key": "sk-wrong"}))
    long = {**ASKED, "messages": [{"role": "user", "content": "word " * 5000}]}
    raised(litellm.ContextWindowExceededError, lambda: litellm.completion(**long))


if __name__ == "__main__":
    run()
