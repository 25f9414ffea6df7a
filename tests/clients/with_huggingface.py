"""huggingface_hub's InferenceClient: TGI's text generation, and chat."""

from __future__ import annotations

from checks import KEY, MODEL, URL, check, raised, run
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError

TEXT = InferenceClient(URL, token=KEY, timeout=120)
CHAT = InferenceClient(base_url=f"{URL}/v1", api_key=KEY, timeout=120)
HI = [{"role": "user", "content": "What is your name?"}]


@check
def text_generation() -> None:
    text = TEXT.text_generation("Once upon a time", max_new_tokens=8)
    told = TEXT.text_generation("Once upon a time", max_new_tokens=8, details=True, decoder_input_details=True)
    assert text and told.generated_text == text and told.details.finish_reason in ("length", "eos_token")
    assert len(told.details.tokens) == told.details.generated_tokens <= 8 and told.details.prefill


@check
def text_generation_streamed() -> None:
    text = TEXT.text_generation("Once upon a time", max_new_tokens=8)
    assert "".join(TEXT.text_generation("Once upon a time", max_new_tokens=8, stream=True)) == text
    told = list(TEXT.text_generation("Once upon a time", max_new_tokens=8, stream=True, details=True))
    assert told[-1].generated_text == text and told[-1].details.generated_tokens == len(told)


@check
def chat_completion() -> None:
    whole = CHAT.chat_completion(HI, model=MODEL, max_tokens=12, temperature=0)
    parts = CHAT.chat_completion(HI, model=MODEL, max_tokens=12, temperature=0, stream=True)
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == whole.choices[0].message.content != ""


@check
async def async_chat_completion() -> None:
    async with AsyncInferenceClient(base_url=f"{URL}/v1", api_key=KEY, timeout=120) as client:
        assert (await client.chat_completion(HI, model=MODEL, max_tokens=4)).choices[0].message.content


@check
def exceptions() -> None:
    told = raised(HfHubHTTPError, lambda: CHAT.chat_completion(HI, model="gpt-5", max_tokens=4))
    assert told.response.status_code == 404


if __name__ == "__main__":
    run()
