"""How likely one text is after another: the pair becomes a prompt whose log-probabilities are wanted, and these one number.

Knows no HTTP. Nothing is generated, and no chat template is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from shardwise.engine.complete import Prompt
from shardwise.engine.outputs import RequestOutput, ScoringOutput, ScoringRequestOutput
from shardwise.engine.text import Tokenizer
from shardwise.errors import RequestError
from shardwise.sched.checks import check_text
from shardwise.sched.request import SamplingParams

SCORING = SamplingParams(max_tokens=0, prompt_logprobs=0, temperature=0.0, seed=0, detokenize=False)
"""Asks for the log-probability of each token of the prompt, and for nothing else."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt that ends with `scored` tokens of the text that is scored."""

    prompt: Prompt
    scored: int

    def score(self, output: RequestOutput) -> float:
        """The mean log-probability of those tokens, each after all before it: the logarithm of one over their perplexity."""
        found = output.prompt_logprobs
        assert found is not None and len(found) == len(self.prompt.ids), (
            "the log-probabilities of the prompt were not asked for"
        )
        values = []
        for token, place in zip(self.prompt.ids[-self.scored :], found[-self.scored :], strict=True):
            assert place is not None, "the first token of a prompt has no log-probability"
            values.append(place[token].logprob)
        return math.fsum(values) / self.scored

    def output(self, output: RequestOutput) -> ScoringRequestOutput:
        """The same with what it belongs to."""
        found = ScoringOutput(self.score(output))
        return ScoringRequestOutput(output.request_id, found, list(self.prompt.ids), output.num_cached_tokens or 0)


def pair(tokenizer: Tokenizer, before: str, scored: str, name: str = "the pair", *, tenant: str = "") -> Pair:
    """`scored` after `before`: each text is tokenised by itself, so that what is scored is the same tokens whatever is before.
    What the tokenizer begins prompts with stands before both. RequestError where either has no tokens."""
    for text, which in ((before, "first"), (scored, "second")):
        check_text(text, f"the {which} text of {name}")
    first = tokenizer.encode(before)
    second = tokenizer.encode(scored, add_special_tokens=False)
    for ids, which in ((first, "first"), (second, "second")):
        if not ids:
            raise RequestError(f"the {which} text of {name} is empty: it needs at least one token")
    return Pair(Prompt(None, (*first, *second), tenant=tenant), len(second))


def paired(first: list[str], second: list[str]) -> list[tuple[str, str]]:
    """One text with each of several, or each with its own. As in vLLM. RequestError for other counts."""
    if not first or not second or len(first) not in (1, len(second)):
        raise RequestError(
            f"text_1 has {len(first)} texts and text_2 has {len(second)}; give one text_1 for all, or as many of each"
        )
    return [(first[0] if len(first) == 1 else first[n], text) for n, text in enumerate(second)]
