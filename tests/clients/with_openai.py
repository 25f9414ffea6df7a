"""OpenAI's Python package: chat, completions, responses, embeddings, models, and its exceptions."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import openai
from checks import KEY, MODEL, URL, check, raised, run
from pydantic import BaseModel, Field

CLIENT = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0, timeout=120)
HI: Any = [{"role": "user", "content": "What is your name?"}]
GREEDY: Any = {"model": MODEL, "temperature": 0}
CHAT: Any = {**GREEDY, "messages": HI, "max_completion_tokens": 12}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "strict": True, "parameters": PARAMETERS}}
CLOCK: Any = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}


class Visit(BaseModel):
    city: Literal["Paris", "Oslo"]
    days: int = Field(ge=1, le=9)


@check
def chat() -> None:
    answer = CLIENT.chat.completions.create(**CHAT)
    [choice] = answer.choices
    assert choice.message.role == "assistant" and choice.message.content and answer.model == MODEL
    assert choice.finish_reason in ("stop", "length") and 0 < answer.usage.completion_tokens <= 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@check
def chat_streamed_is_the_same() -> None:
    whole = CLIENT.chat.completions.create(**CHAT)
    parts = list(CLIENT.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True}))
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == whole.choices[0].message.content
    assert [part.choices[0].finish_reason for part in parts if part.choices][-1] == whole.choices[0].finish_reason
    told = parts[-1].usage
    assert told is not None and told.completion_tokens == whole.usage.completion_tokens
    word = {**CHAT, "stop": " "}  # the helper takes an answer that was cut at its limit for an error
    with CLIENT.chat.completions.stream(**word) as stream:
        final = stream.get_final_completion().choices[0].message.content
    assert final == CLIENT.chat.completions.create(**word).choices[0].message.content
    assert final and whole.choices[0].message.content.startswith(final)


@check
async def async_eight_at_once() -> None:
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0, timeout=120) as client:
        whole = await client.chat.completions.create(**CHAT)

        async def streamed() -> str:
            found = ""
            async for part in await client.chat.completions.create(**CHAT, stream=True):
                found += part.choices[0].delta.content or ""
            return found

        assert set(await asyncio.gather(*(streamed() for _ in range(8)))) == {whole.choices[0].message.content}


@check
def n_seed_and_logprobs() -> None:
    asked: Any = {**CHAT, "temperature": 1, "seed": -7, "n": 3, "logprobs": True, "top_logprobs": 2}
    first, second = (CLIENT.chat.completions.create(**asked) for _ in range(2))
    assert [choice.index for choice in first.choices] == [0, 1, 2] and first.choices == second.choices
    for choice in first.choices:
        assert choice.logprobs is not None and choice.logprobs.content
        for place in choice.logprobs.content:
            assert place.logprob <= 0 and len(place.top_logprobs) >= 2 and bytes(place.bytes or []) is not None


@check
def structured() -> None:
    answer = CLIENT.chat.completions.parse(**{**CHAT, "max_completion_tokens": 60}, response_format=Visit)
    assert isinstance(answer.choices[0].message.parsed, Visit)
    schema = {"name": "visit", "strict": True, "schema": PARAMETERS}
    form: Any = {"type": "json_schema", "json_schema": schema}
    text = CLIENT.chat.completions.create(**{**CHAT, "max_completion_tokens": 60}, response_format=form)
    assert Visit.model_validate_json(text.choices[0].message.content or "")


@check
def tools() -> None:
    few: Any = {**CHAT, "tools": [WEATHER, CLOCK]}
    asked: Any = {**few, "max_completion_tokens": 80}
    assert CLIENT.chat.completions.create(**few).choices[0].finish_reason in ("stop", "length", "tool_calls")
    assert CLIENT.chat.completions.create(**few, tool_choice="none").choices[0].message.tool_calls is None
    required = CLIENT.chat.completions.create(**asked, tool_choice="required", parallel_tool_calls=False)
    [call] = required.choices[0].message.tool_calls
    assert call.function.name in ("weather", "clock") and required.choices[0].finish_reason == "tool_calls"
    named: Any = {"type": "function", "function": {"name": "weather"}}
    choice = CLIENT.chat.completions.create(**asked, tool_choice=named).choices[0]
    assert choice.finish_reason == "stop", "as OpenAI ends an answer whose function was named"
    [call] = choice.message.tool_calls
    Visit.model_validate_json(call.function.arguments)
    with CLIENT.chat.completions.stream(**asked, tool_choice=named) as stream:
        [streamed] = stream.get_final_completion().choices[0].message.tool_calls
    assert streamed.function.arguments == call.function.arguments and streamed.function.name == "weather"
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": json.dumps({"sky": "clear"})}
    then = [*HI, choice.message.model_dump(exclude_none=True), result]
    assert CLIENT.chat.completions.create(**{**few, "messages": then}).choices


@check
def completions() -> None:
    asked: Any = {**GREEDY, "prompt": ["Once upon", "The"], "max_tokens": 5, "n": 2, "echo": True, "logprobs": 2}
    answer = CLIENT.completions.create(**asked)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text.startswith("Once upon") and answer.choices[2].text.startswith("The")
    text = "".join(
        part.choices[0].text for part in CLIENT.completions.create(**GREEDY, prompt="The", max_tokens=5, stream=True)
    )
    assert "The" + text == answer.choices[2].text


@check
def responses() -> None:
    asked: Any = {**GREEDY, "input": "What is your name?", "max_output_tokens": 12}
    first = CLIENT.responses.create(**asked)
    assert first.status in ("completed", "incomplete") and first.output_text
    events = list(CLIENT.responses.create(**asked, stream=True))
    assert events[0].type == "response.created" and [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == first.output_text
    parsed = CLIENT.responses.parse(**{**asked, "max_output_tokens": 60}, text_format=Visit)
    assert isinstance(parsed.output_parsed, Visit)
    with CLIENT.responses.stream(**{**asked, "max_output_tokens": 60}, text_format=Visit) as stream:
        assert stream.get_final_response().output_parsed == parsed.output_parsed
    assert CLIENT.responses.retrieve(first.id).output == first.output
    then = CLIENT.responses.create(**{**asked, "input": "And then?"}, previous_response_id=first.id)
    assert then.previous_response_id == first.id and then.usage.input_tokens > first.usage.input_tokens
    tool: Any = {"type": "function", "name": "weather", "strict": True, "parameters": PARAMETERS}
    called = CLIENT.responses.create(**{**asked, "max_output_tokens": 80}, tools=[tool], tool_choice="required")
    assert called.output[-1].type == "function_call" and Visit.model_validate_json(called.output[-1].arguments)
    CLIENT.responses.delete(then.id)
    raised(openai.NotFoundError, lambda: CLIENT.responses.retrieve(then.id))


@check
def responses_in_the_background() -> None:
    long: Any = {"ignore_eos": True}
    begun = CLIENT.responses.create(model=MODEL, input="Tell me a story", background=True, extra_body=long)
    assert begun.status in ("queued", "in_progress")
    ended = CLIENT.responses.cancel(begun.id)
    assert ended.status == "cancelled" and CLIENT.responses.retrieve(begun.id).status == "cancelled"


@check
def embeddings() -> None:
    texts = ["a cat", "a much longer text about a cat"]
    usual = CLIENT.embeddings.create(model=MODEL, input=texts)  # the package asks for base64 by itself
    floats = CLIENT.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    assert [each.index for each in usual.data] == [0, 1] and usual.usage.total_tokens > 2
    for one, other in zip(usual.data, floats.data, strict=True):
        assert len(one.embedding) == len(other.embedding) > 16
        assert max(abs(a - b) for a, b in zip(one.embedding, other.embedding, strict=True)) < 1e-5
    assert len(CLIENT.embeddings.create(model=MODEL, input="a cat", dimensions=8).data[0].embedding) == 8


@check
def models() -> None:
    assert [model.id for model in CLIENT.models.list()] == [MODEL]
    assert CLIENT.models.retrieve(MODEL).id == MODEL
    raised(openai.NotFoundError, lambda: CLIENT.models.retrieve("gpt-5"))


@check
def exceptions() -> None:
    create = CLIENT.chat.completions.create
    missing = raised(openai.NotFoundError, lambda: create(**{**CHAT, "model": "gpt-5"}))
    assert missing.code == "model_not_found" and missing.param == "model" and MODEL in missing.message
    wrong: Any = {**CHAT, "temperature": -1}
    assert "temperature" in raised(openai.BadRequestError, lambda: create(**wrong)).message
    long = {**CHAT, "messages": [{"role": "user", "content": "word " * 5000}]}
    assert raised(openai.BadRequestError, lambda: create(**long)).code == "context_length_exceeded"
    stranger = CLIENT.with_options(api_key="sk-wrong")
    told = raised(openai.AuthenticationError, lambda: stranger.chat.completions.create(**CHAT))
    assert told.status_code == 401 and "sk-wrong" not in str(told)
    assert told.request_id, "an answer names its request"


if __name__ == "__main__":
    run()
