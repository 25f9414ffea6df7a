"""What clients ask, by a seed: chat and completions, greedy and sampled, short and long prompts, one choice and two."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WORDS = (
    "the", "a", "one", "little", "old", "red", "cat", "dog", "bird", "girl", "boy", "king", "forest", "river",
    "house", "stone", "went", "saw", "found", "gave", "took", "said", "happy", "sad", "bright", "under", "over",
    "with", "and", "then", "because", "tensor", "rank", "model", "token", "weight", "cut",
)  # fmt: skip

LONG_WORDS = 220
"""Of a long prompt: several pages of a cache, and below the context of small models."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, without the model's name. `extras` are fields beyond OpenAI's, for servers that know them."""

    number: int
    path: str
    body: Mapping[str, Any]
    extras: Mapping[str, Any]

    def encoded(self, model: str, *, plain: bool, salt: str | None = None) -> bytes:
        """The body. `salt` keeps what other requests have computed from being used for this one."""
        more = {} if plain else {**self.extras, **({"cache_salt": salt} if salt else {})}
        return json.dumps({"model": model, **self.body, **more}).encode()


def requests(seed: int, count: int, tokens: int) -> tuple[Asked, ...]:
    """`count` different ones; none asks for more than `tokens` tokens a choice."""
    draws = random.Random(f"requests {seed}")
    return tuple(_one(number, tokens, draws) for number in range(count))


def _one(number: int, tokens: int, draws: random.Random) -> Asked:
    chat, sampled, long, double = number % 2 == 1, number // 2 % 2 == 1, number % 3 == 0, number % 5 == 0
    prompt = " ".join(draws.choice(WORDS) for _ in range(LONG_WORDS if long else draws.randint(4, 12)))
    body: dict[str, Any] = {
        "max_tokens": draws.randint(max(1, tokens // 2), tokens),
        "stream": True,
        "stream_options": {"include_usage": True},
        "n": 2 if double and sampled else 1,
        "temperature": 0,
    }
    if sampled:
        # Hot ones write what is rare: characters of several tokens among it.
        body |= {"temperature": draws.choice((0.7, 1.0, 1.8)), "top_p": 0.95, "seed": draws.randrange(2**31)}
    if number % 4 == 2:
        body |= {"presence_penalty": 0.5, "frequency_penalty": 0.3}
    extras: dict[str, Any] = {"return_token_ids": True}
    if number % 4 != 3:
        extras["ignore_eos"] = True
    if number % 8 == 7:
        extras["response_format"] = {"type": "json_object"}
    path = "chat/completions" if chat else "completions"
    body |= {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
    return Asked(number, path, body, extras)
