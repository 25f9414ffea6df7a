"""OpenAI's Python package at a server that runs one sequence and lets one wait: the third is told when to come again."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import openai
from checks import KEY, MODEL, URL, check, raised, run

CLIENT = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0, timeout=120)
LONG: Any = {"model": MODEL, "prompt": "Once", "max_tokens": 900, "stream": True, "extra_body": {"ignore_eos": True}}


@check
def rate_limit() -> None:
    with ExitStack() as streams:
        for _ in range(2):
            streams.enter_context(CLIENT.completions.create(**LONG))
        told = raised(openai.RateLimitError, lambda: CLIENT.completions.create(**LONG))
        assert told.status_code == 429 and told.code == "queue_full" and int(told.response.headers["retry-after"]) >= 1


@check
def retries_by_itself() -> None:
    """The package comes again when it is told to; what was in its way has been closed meanwhile."""
    patient = CLIENT.with_options(max_retries=8)
    with ExitStack() as streams:
        for _ in range(2):
            streams.enter_context(patient.completions.create(**LONG))
        raised(openai.RateLimitError, lambda: CLIENT.completions.create(**LONG))
    assert patient.completions.create(model=MODEL, prompt="Once", max_tokens=2).usage.completion_tokens == 2


if __name__ == "__main__":
    run()
