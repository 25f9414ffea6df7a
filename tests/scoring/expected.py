"""What texts are worth by transformers: log-likelihoods in nats, cut into tokens and windows as lm-eval does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer


class Judge:
    """A checkpoint in transformers, in float64: in float32 its own rounding is larger than ours (docs/log.md). `longest` is the
    most tokens that it is given at once."""

    def __init__(self, folder: Path, longest: int) -> None:
        from transformers import AutoModelForCausalLM

        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
        self._longest = longest

    def encode(self, text: str) -> list[int]:
        """Without special tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def tokens(self, ids: Sequence[int]) -> list[float]:
        """The log-probability of each token after those before it; of all but the first."""
        with torch.inference_mode():
            given = torch.tensor([ids])
            logs = self._model(given).logits[0].log_softmax(-1)
        return logs[:-1].gather(1, given[0, 1:, None])[:, 0].tolist()

    def continuation(self, context: str, text: str) -> float:
        """Of a text after a context, whose last spaces count to the text (lm-eval's `_encode_pair`)."""
        spaces = len(context) - len(context.rstrip())
        if spaces:
            context, text = context[:-spaces], context[-spaces:] + text
        # Where the two together are cut otherwise at their border, these are not the tokens of the whole text.
        before = self.encode(context)
        return sum(self.tokens([*before, *self.encode(context + text)[len(before) :]])[len(before) - 1 :])

    def rolling(self, text: str, prefix: int) -> float:
        """Of a whole text, in windows that each see as much as fits."""
        return sum(sum(self.tokens(seen)[-count:]) for seen, count in windows(self.encode(text), prefix, self._longest))


def windows(ids: Sequence[int], prefix: int, longest: int) -> Iterator[tuple[list[int], int]]:
    """(tokens, how many of its last count) for each window (lm-eval's `get_rolling_token_windows` with one of context)."""
    first = min(longest, len(ids))
    yield [prefix, *ids[:first]], first
    done = first
    while done < len(ids):
        count = min(len(ids) - done, longest)
        done += count
        yield list(ids[done - longest - 1 : done]), count
