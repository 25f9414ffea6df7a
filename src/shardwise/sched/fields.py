"""Sampling values under any of their usual names, vLLM's and OpenAI's, as JSON has them, become those of SamplingParams."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from shardwise.errors import RequestError
from shardwise.sched.checks import shown
from shardwise.sched.request import FIELDS
from shardwise.sched.structured_fields import SPELLINGS, structured_field

ALIASES = {"max_completion_tokens": "max_tokens", "max_new_tokens": "max_tokens"}
CHANGES_NOTHING = (
    "metadata", "model", "parallel_tool_calls", "prompt_cache_key", "safety_identifier", "service_tier", "store", "stream",
    "stream_options", "user",
)  # fmt: skip
"""OpenAI's fields that say nothing about the tokens: who pays, what for, how to send them."""

NAMES = tuple(name for name in FIELDS if name != "output_kind")


def sampling_fields(given: Mapping[str, object]) -> dict[str, object]:
    """What SamplingParams takes, by its names. RequestError for a name that nobody knows, or two that contradict."""
    found: dict[str, object] = {}
    for name, value in given.items():
        name = ALIASES.get(name, name)
        if name in CHANGES_NOTHING or name in SPELLINGS or name == "top_logprobs":
            continue
        if name not in NAMES:
            near = difflib.get_close_matches(name, (*NAMES, *ALIASES, *SPELLINGS), n=1)
            raise RequestError(f"unknown field {shown(name)}" + (f", nearest: {near[0]}" if near else ""))
        if name in found and found[name] != value:
            raise RequestError(f"{name} is given twice, as {shown(found[name])} and as {shown(value)}; give it once")
        found[name] = value
    # None is what the field has by itself, except that max_tokens has a number.
    found = {name: value for name, value in found.items() if value is not None or name == "max_tokens"}
    if (answer := structured_field(given)) is not None:
        found["structured_outputs"] = answer
    _count_logprobs(found, given.get("top_logprobs"))
    if isinstance(biases := found.get("logit_bias"), Mapping):
        found["logit_bias"] = _numbered(biases)
    return found


def _count_logprobs(found: dict[str, object], top: object) -> None:
    """OpenAI's chat says whether (`logprobs`) and how many (`top_logprobs`); elsewhere `logprobs` is how many."""
    asked = found.get("logprobs")
    if isinstance(asked, bool):
        del found["logprobs"]
        if asked:
            found["logprobs"] = 0 if top is None else top
    if top not in (None, 0) and asked is not True:  # some clients send 0 for none
        raise RequestError(f"top_logprobs is {shown(top)}; it needs logprobs to be true")


def _numbered(biases: Mapping[object, object]) -> dict[object, object]:
    """With token ids as numbers: JSON has no keys but strings."""
    found: dict[object, object] = {}
    for key, bias in biases.items():
        token: object = int(key) if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 20 else key
        if token in found:
            raise RequestError(f"logit_bias has token id {token} twice; give it once")
        found[token] = bias
    return found
