"""What a client asks for: sampling values, checked against closed ranges before anything runs."""

from __future__ import annotations

from dataclasses import dataclass

from shardwise.errors import RequestError

SEEDS = 2**63
MAX_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen. Names and meanings as in vLLM; `temperature` 0 is greedy.

    `seed` None gets one at admission, kept with the request, so that a replay gives the same tokens. `logprobs` n returns
    the n most likely tokens of each position beside the chosen one.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _real("temperature", self.temperature, 0, 100)
        _real("top_p", self.top_p, 0, 1, above=True)
        _real("min_p", self.min_p, 0, 1)
        _whole("top_k", self.top_k, -1, 2**31 - 1)
        _whole("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, 1, 2**31 - 1)
            if self.min_tokens > self.max_tokens:
                raise RequestError(f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}")
        if self.seed is not None:
            _whole("seed", self.seed, 0, SEEDS - 1)
        if self.logprobs is not None:
            _whole("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        # A bare string would be taken apart into one-character stops.
        listed: object = self.stop
        if not isinstance(listed, tuple | list) or not all(isinstance(s, str) and s for s in listed):
            raise RequestError(f"stop is {self.stop!r}; it takes a list of strings of at least one character")


def _real(name: str, value: float, low: float, high: float, *, above: bool = False) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (low < value if above else low <= value) or value > high:
        raise RequestError(f"{name} is {value!r}; it takes a number {'above' if above else 'from'} {low} to {high}")


def _whole(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise RequestError(f"{name} is {value!r}; it takes a whole number from {low} to {high}")
