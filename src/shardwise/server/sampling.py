"""How tokens are chosen, in the body of a request: the fields that all endpoints share, and what they become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from shardwise.engine.prompts import last_ids
from shardwise.errors import RequestError
from shardwise.sched.fields import sampling_fields
from shardwise.sched.request import MAX_BIAS, MAX_CHOICES, MAX_LOGPROB_IDS, MAX_LOGPROBS, MOST, SEEDS, SamplingParams
from shardwise.server.refusal import Refusal
from shardwise.server.service import Service


def _says(text: str) -> Meta:
    return Meta(description=text)


TopP = Annotated[float, Meta(gt=0, le=1, description="Draw from the likeliest tokens that have this probability in all.")]


class DrawBody(msgspec.Struct, kw_only=True):
    """How tokens are drawn. Absent or null: the checkpoint's generation_config.json decides, else the default."""

    temperature: (
        Annotated[float, Meta(ge=0, le=100, description="0 takes the likeliest token; higher is more varied.")] | None
    ) = None
    top_p: TopP | None = None
    top_k: (
        Annotated[int, Meta(ge=-1, le=MOST, description="Draw from so many of the likeliest tokens; 0 or -1 is all.")] | None
    ) = None
    min_p: (
        Annotated[float, Meta(ge=0, le=1, description="Draw from tokens at least so likely, beside the likeliest one.")] | None
    ) = None
    presence_penalty: (
        Annotated[float, Meta(ge=-2, le=2, description="Taken off the logits of tokens that came up already.")] | None
    ) = None
    frequency_penalty: (
        Annotated[float, Meta(ge=-2, le=2, description="Taken off the logits of tokens as often as they came up.")] | None
    ) = None
    repetition_penalty: (
        Annotated[float, Meta(gt=0, le=100, description="Above 1, tokens of the prompt and the answer get less likely.")] | None
    ) = None
    seed: Annotated[int, Meta(ge=1 - SEEDS, le=SEEDS - 1, description="The same seed gives the same answer.")] | None = None
    stop: Annotated[str | list[str], _says("The answer ends before any of these texts.")] | None = None
    ignore_eos: Annotated[bool, _says("Go on where the model would end.")] | None = None


class SamplingBody(DrawBody, kw_only=True):
    """All that may be said of an answer's tokens."""

    n: (
        Annotated[
            int,
            Meta(ge=1, le=MAX_CHOICES, description="So many answers, each drawn apart; no more than --max-num-seqs lets run."),
        ]
        | None
    ) = None
    max_tokens: Annotated[int, Meta(ge=0, le=MOST, description="The most tokens of an answer.")] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=MOST, description="No end before so many tokens.")] | None = None
    stop_token_ids: Annotated[list[int], _says("The answer ends at any of these tokens.")] | None = None
    include_stop_str_in_output: Annotated[bool, _says("Keep the stop text in the answer.")] | None = None
    skip_special_tokens: Annotated[bool, _says("Leave special tokens out of the text.")] | None = None
    spaces_between_special_tokens: Annotated[bool, _says("Changes nothing.")] | None = None
    logit_bias: (
        Annotated[dict[str, float], _says(f"Added to the logits of token ids, from -{MAX_BIAS} to {MAX_BIAS}.")] | None
    ) = None
    bad_words: Annotated[list[str], _says("Texts that never come up.")] | None = None
    allowed_token_ids: Annotated[list[int], _says("Only these tokens are drawn.")] | None = None
    prompt_logprobs: (
        Annotated[int, Meta(ge=0, le=MAX_LOGPROBS, description="Log-probabilities of the prompt, with so many others.")] | None
    ) = None
    logprob_token_ids: (
        Annotated[
            list[int],
            _says(
                f"Log-probabilities of these up to {MAX_LOGPROB_IDS} token ids at each place of the answer, in place of the "
                "likeliest ones; with logprobs."
            ),
        ]
        | None
    ) = None
    response_format: (
        Annotated[
            dict[str, Any], _says("The form of the answer: {type: text | json_object | json_schema | structural_tag, ...}.")
        ]
        | None
    ) = None
    structured_outputs: (
        Annotated[
            dict[str, Any], _says("The form of the answer: one of json, regex, choice, grammar, json_object, structural_tag.")
        ]
        | None
    ) = None
    guided_json: Annotated[str | dict[str, Any], _says("Older name of structured_outputs.json.")] | None = None
    guided_regex: Annotated[str, _says("Older name of structured_outputs.regex.")] | None = None
    guided_choice: Annotated[list[str], _says("Older name of structured_outputs.choice.")] | None = None
    guided_grammar: Annotated[str, _says("Older name of structured_outputs.grammar.")] | None = None
    regex: Annotated[str, _says("SGLang's name of structured_outputs.regex.")] | None = None
    ebnf: Annotated[str, _says("SGLang's name of structured_outputs.grammar.")] | None = None
    json_schema: Annotated[str | dict[str, Any], _says("SGLang's and llama.cpp's name of structured_outputs.json.")] | None = (
        None
    )
    grammar: Annotated[str, _says("llama.cpp's name of structured_outputs.grammar: GBNF or Lark.")] | None = None
    structural_tag: (
        Annotated[str | dict[str, Any], _says("Older name, and SGLang's, of structured_outputs.structural_tag.")] | None
    ) = None


SHARED = SamplingBody.__struct_fields__
"""The fields of bodies that say how tokens are chosen, and mean the same in each."""


class StreamOptions(msgspec.Struct):
    """What a stream tells besides the answer."""

    include_usage: Annotated[bool, _says("A last frame tells the number of tokens.")] | None = None
    continuous_usage_stats: Annotated[bool, _says("Every frame tells the number of tokens so far.")] | None = None


def given(body: msgspec.Struct) -> dict[str, object]:
    """What a body says of those of the fields that it has."""
    found = ((name, getattr(body, name, None)) for name in SHARED)
    return {name: value for name, value in found if value is not None}


def sampling(service: Service, asked: Mapping[str, object], **usual: object) -> SamplingParams:
    """The values a request runs with: as `asked`, by any of their names, else the checkpoint's, else `usual`.

    RequestError for what is out of range or contradicts, Refusal for more choices than this server gives.
    """
    fields = sampling_fields(asked)
    if isinstance(seed := fields.get("seed"), int) and -SEEDS < seed < 0:
        fields["seed"] = seed + SEEDS  # OpenAI's seeds are signed; ours begin at 0
    params = SamplingParams(**{**usual, **service.defaults, **fields})
    check_choices(service, params.n, "n")
    return params


def check_choices(service: Service, count: int, name: str) -> None:
    """Refusal for more answers to one prompt than this server gives, or runs at once; the field is called `name`."""
    most, at_once = service.settings.max_choices, service.engine.setup.limits.sequences
    if count > most:
        raise Refusal(400, f"{name} is {count}; this server gives at most {most} answers", param=name)
    if count > at_once:
        raise Refusal(400, f"{name} is {count}, but at most {at_once} sequences run at once (--max-num-seqs)", param=name)


ID_BYTES, SCORE_BYTES = 8, 32
"""What a token's id and a token's log-probability count for, of a prompt that is told again; about what they are as JSON."""


def check_repeated(service: Service, choices: int, each_bytes: int, param: str = "n") -> None:
    """Refusal where several choices would each tell so many bytes of their prompts again, and that is more than there may be.
    One choice tells what it was given, however long."""
    most, all_bytes = service.settings.max_repeated_bytes, choices * each_bytes
    if choices > 1 and all_bytes > most:
        fitting = max(1, most // each_bytes)
        raise Refusal(
            400, f"{param} is {choices}, and each choice would repeat {each_bytes} bytes of the prompt, {all_bytes} in all; "
            f"{most} are the most: ask for {fitting} at once, or do not have the prompt repeated",
            param=param,
        )  # fmt: skip


def check_names_scores(ids: list[int] | None, *, asked: bool) -> None:
    """Refusal for ids whose log-probabilities are wanted where none are `asked` for (as in vLLM): nothing would tell them."""
    if ids and not asked:
        raise Refusal(
            400,
            "logprob_token_ids says of which tokens, and needs logprobs to say that they are told",
            param="logprob_token_ids",
        )


def check_prompt_scores(most: int | None, *, streams: bool | None) -> None:
    """RequestError where a stream is to tell the log-probabilities of its prompt."""
    if streams and most is not None:
        raise RequestError(
            "prompt_logprobs are told all at once; leave out stream (completions stream them with echo and logprobs)"
        )


def shortened(
    service: Service, ids: tuple[int, ...], most: int | None, name: str = "truncate_prompt_tokens"
) -> tuple[int, ...]:
    """The last `most` ids, as `last_ids`, with room for one more."""
    return last_ids(ids, most, service.engine.setup.context, spare=1, name=name)
