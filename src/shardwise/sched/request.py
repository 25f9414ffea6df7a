"""What a client asks for: sampling values, checked against closed ranges before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from numbers import Integral

from shardwise.errors import RequestError
from shardwise.sched.checks import flag, in_vocabulary, real, shown, strings, token_ids, whole
from shardwise.sched.structured import StructuredOutputs, structured

SEEDS = 2**63
MOST = 2**31 - 1
MAX_CHOICES = 128
MAX_LOGPROBS = 20
MAX_LOGPROB_IDS = 128
MAX_STOPS = 16
MAX_STOP_CHARS = 1024
MAX_STOP_IDS = 1024
MAX_BAD_WORDS = 1024
MAX_BIASES = 1024
MAX_BIAS = 100
MAX_ALLOWED_IDS = 2**20

REALS = {
    "temperature": (0, 100), "min_p": (0, 1),
    "presence_penalty": (-2, 2), "frequency_penalty": (-2, 2),
}  # fmt: skip
"""The closed range of each."""

REALS_ABOVE = {"top_p": (0, 1), "repetition_penalty": (0, 100)}
"""Of these, the lower end is not in the range."""

FLAGS = ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens", "spaces_between_special_tokens", "detokenize")


class RequestOutputKind(IntEnum):
    """What each output of a stream holds: all so far, what is new since the one before, or there is only the last."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen, and what is told of them. Names, meanings and defaults as in vLLM.

    `n` continuations of one prompt, each drawn apart; `temperature` 0 is greedy, `top_k` 0 or -1 is all.
    `max_tokens` None goes on to the end of the context; 0, with `prompt_logprobs`, only scores the prompt. Before
    `min_tokens`, no end token is drawn and no stop string looked for.
    `stop`: one string or several; the text ends before it, or behind it with `include_stop_str_in_output`.
    `stop_token_ids` end it as the model's own end tokens do; `ignore_eos` leaves only these.
    `logprobs` n returns the n most likely tokens of each position beside the chosen one, `prompt_logprobs` those of the prompt.
    `logprob_token_ids`: of each position their log-probabilities instead, and that of the chosen token all the same; no more
    than 128 of them, and `logprobs` changes nothing then.
    `logit_bias` is added to the logits of its ids; only `allowed_token_ids` are drawn; `bad_words` never
    come up as the tokenizer writes them, at the beginning of a text or behind a space.
    `seed` None gets one at admission, kept with the request, so that a replay gives the same tokens.
    `detokenize` False leaves the text out. `spaces_between_special_tokens` is accepted and changes nothing: the texts of the
    supported tokenizers have no spaces of their own there.
    `structured_outputs`: what the whole answer must look like; a mapping with its fields is taken for one. No end token is
    drawn before the answer is complete, and where it can only end it ends, whatever `min_tokens` says.

    Sequences are kept as tuples, ids each once. RequestError for anything of another type or out of range.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: Sequence[int] | None = None
    logit_bias: Mapping[int, float] | None = None
    bad_words: Sequence[str] = ()
    allowed_token_ids: Sequence[int] | None = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    detokenize: bool = True
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    structured_outputs: StructuredOutputs | None = None

    def __post_init__(self) -> None:
        plain: dict[str, object] = {}
        for name, (low, high) in REALS.items():
            plain[name] = real(name, getattr(self, name), low, high)
        for name, (low, high) in REALS_ABOVE.items():
            plain[name] = real(name, getattr(self, name), low, high, above=True)
        for name in FLAGS:
            plain[name] = flag(name, getattr(self, name))
        plain["n"] = whole("n", self.n, 1, MAX_CHOICES)
        plain["top_k"] = whole("top_k", self.top_k, -1, MOST)
        plain["min_tokens"] = whole("min_tokens", self.min_tokens, 0, MOST)
        for name, most in (("seed", SEEDS - 1), ("logprobs", MAX_LOGPROBS), ("prompt_logprobs", MAX_LOGPROBS)):
            value = getattr(self, name)
            plain[name] = None if value is None else whole(name, value, 0, most)
        if (named := token_ids("logprob_token_ids", _or_none(self.logprob_token_ids), MAX_LOGPROB_IDS)) != ():
            plain["logprobs"] = plain["logprobs"] or 0
        plain["logprob_token_ids"] = named or None
        if self.max_tokens is not None:
            scoring = "; 0 only scores the prompt, and needs prompt_logprobs" if self.max_tokens == 0 else ""
            least = 1 if self.prompt_logprobs is None else 0
            plain["max_tokens"] = whole("max_tokens", self.max_tokens, least, MOST, scoring)
        plain["stop"] = strings("stop", _one_or_many(self.stop), MAX_STOPS, MAX_STOP_CHARS)
        plain["bad_words"] = strings("bad_words", _or_none(self.bad_words), MAX_BAD_WORDS, MAX_STOP_CHARS)
        plain["stop_token_ids"] = token_ids("stop_token_ids", _or_none(self.stop_token_ids), MAX_STOP_IDS)
        if self.allowed_token_ids is not None:
            plain["allowed_token_ids"] = token_ids("allowed_token_ids", self.allowed_token_ids, MAX_ALLOWED_IDS)
        plain["logit_bias"] = _biases(self.logit_bias)
        plain["output_kind"] = _kind(self.output_kind)
        plain["structured_outputs"] = structured(self.structured_outputs)
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        self._check_together()

    def _check_together(self) -> None:
        """What each field allows by itself, and another does not."""
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(f"min_tokens is {self.min_tokens}, above max_tokens, which is {self.max_tokens}")
        if self.max_tokens == 0 and self.n > 1:
            raise RequestError(f"n is {self.n}, but with max_tokens 0 there is nothing to continue; leave n at 1")
        if self.logprob_token_ids is not None and self.max_tokens == 0:
            raise RequestError("logprob_token_ids are of the tokens of an answer, and with max_tokens 0 there is none")
        if self.stop and not self.detokenize:
            raise RequestError("stop strings are looked for in the text, and detokenize is False; use stop_token_ids")
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise RequestError("allowed_token_ids is empty; name at least one id, or leave it out to allow all")
        if self.structured_outputs is not None and self.max_tokens == 0:
            raise RequestError(
                f"{self.structured_outputs.said} is set, but with max_tokens 0 there is no answer; leave one of them out"
            )

    def seeded(self, seed: int) -> SamplingParams:
        """The same with a seed, which is in its range; nothing is checked again."""
        found = object.__new__(SamplingParams)
        for name in FIELDS:
            object.__setattr__(found, name, getattr(self, name))
        object.__setattr__(found, "seed", seed)
        return found

    def check_vocabulary(self, vocab: int) -> None:
        """RequestError for an id that a model of `vocab` ids does not have."""
        in_vocabulary("stop_token_ids", self.stop_token_ids, vocab)
        in_vocabulary("allowed_token_ids", self.allowed_token_ids or (), vocab)
        in_vocabulary("logprob_token_ids", self.logprob_token_ids or (), vocab)
        in_vocabulary("logit_bias", self.logit_bias or (), vocab)


FIELDS = tuple(field.name for field in fields(SamplingParams))


def _one_or_many(value: object) -> object:
    """One string as a list of it: its characters are not what is meant."""
    return [value] if isinstance(value, str) and value else _or_none(value)


def _or_none(value: object) -> object:
    """vLLM's None for an empty list."""
    return () if value is None else value


def _biases(value: object) -> dict[int, float] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise RequestError(f"logit_bias is {shown(value)}; it takes a mapping of token ids to numbers")
    if len(value) > MAX_BIASES:
        raise RequestError(f"logit_bias has {len(value)} token ids; it takes at most {MAX_BIASES}")
    found = {}
    for token, bias in value.items():
        if isinstance(token, bool) or not isinstance(token, Integral) or not 0 <= int(token) <= MOST:
            raise RequestError(f"logit_bias has the key {shown(token)}; its keys are token ids, whole numbers from 0 to {MOST}")
        found[int(token)] = real(f"logit_bias[{shown(token)}]", bias, -MAX_BIAS, MAX_BIAS)
    return found or None


def _kind(value: object) -> RequestOutputKind:
    if not isinstance(value, RequestOutputKind):
        names = ", ".join(f"RequestOutputKind.{kind.name}" for kind in RequestOutputKind)
        raise RequestError(f"output_kind is {shown(value)}; it takes one of {names}")
    return value
