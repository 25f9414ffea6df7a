"""One request at a time through all ranks: chunked prefill, then token by token. It knows ids, not text.

The request's tokens are kept here, ranks hold only caches: whatever a rank has computed can be computed again.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from shardwise.engine.memory import CHUNK_TOKENS
from shardwise.engine.ranks import ProcessRanks, Progress, Ranks, ThreadRanks
from shardwise.engine.setup import Setup
from shardwise.errors import RequestError, ShardwiseError
from shardwise.sched.request import SEEDS, SamplingParams
from shardwise.sched.step import Chosen, Draw, Item, Pages, Step
from shardwise.spec.blocks import ropes
from shardwise.spec.layout import PAGE_TOKENS

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token. `finish` is set on the last: "stop" at an end token, "length" at the limit."""

    id: int
    chosen: Chosen
    finish: Finish | None = None


def admit(setup: Setup, prompt: Sequence[int], params: SamplingParams) -> int:
    """How many tokens may be generated; RequestError where the request can never run. Needs no ranks."""
    context, vocab = setup.context, setup.layout.model.vocab
    if not prompt:
        raise RequestError("the prompt is empty: it needs at least one token")
    if len(prompt) >= context:
        own = f"(this model's own context is {setup.layout.model.context})"
        reasons = {"model": "this model's context", "flag": f"--max-model-len {own}", "memory": f"what the memory holds {own}"}
        why = reasons[setup.bound]
        raise RequestError(
            f"the prompt has {len(prompt)} tokens; with at least one to generate it may have {context - 1}, by {why}"
        )
    for token in prompt:
        if not 0 <= token < vocab:
            raise RequestError(f"token id {token} is not in this model's vocabulary of {vocab}")
    room = context - len(prompt)
    if params.max_tokens is not None and params.max_tokens > room:
        raise RequestError(
            f"the prompt has {len(prompt)} tokens and max_tokens is {params.max_tokens}: together more than the context of "
            f"{context}; ask for at most {room}"
        )
    return params.max_tokens or room


class Engine:
    """Ranks in place, ready for prompts. A context manager: leaving it ends every rank.

    `ranks`: "processes" on this host, or "threads" in this process.
    """

    def __init__(
        self, setup: Setup, ranks: Literal["processes", "threads"] | Ranks = "processes", progress: Progress | None = None
    ) -> None:
        self.setup = setup
        if ranks == "processes":
            self.ranks: Ranks = ProcessRanks(setup, progress)
        elif ranks == "threads":
            self.ranks = ThreadRanks(setup, progress)
        else:
            self.ranks = ranks
        self._requests = 0
        self._steps = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.ranks.close()

    def generate(self, prompt: Sequence[int], params: SamplingParams, stops: Sequence[int] = ()) -> Iterator[Token]:
        """The continuation of `prompt`, token by token. `stops` are ids that end it (unless `ignore_eos`)."""
        limit = admit(self.setup, prompt, params)
        seed = params.seed if params.seed is not None else secrets.randbelow(SEEDS)
        # A checkpoint's end ids may lie beyond its logits; such a one is never drawn.
        ends = () if params.ignore_eos else tuple(i for i in stops if 0 <= i < self.setup.layout.model.vocab)
        tokens, computed = list(prompt), 0
        self._requests += 1
        for count in range(1, limit + 1):
            if self._outgrown(len(tokens), computed):
                computed = 0
            barred = ends if count <= params.min_tokens else ()
            draw = Draw(params.temperature, params.top_p, params.top_k, params.min_p, seed, 0, params.logprobs, barred)
            chosen = self._advance(tokens, computed, draw)
            computed = len(tokens)
            tokens.append(chosen.token)
            finish: Finish | None = "stop" if chosen.token in ends else "length" if count == limit else None
            yield Token(chosen.token, chosen, finish)
            if finish:
                return

    def _outgrown(self, known: int, computed: int) -> bool:
        """Whether the cached keys were turned by the short angles of a longrope and the sequence is now a long one."""
        ends = [rope.boundary for rope in ropes(self.setup.layout.model) if rope.long and rope.boundary]
        return any(computed <= end < known for end in ends) and computed > 0

    def _advance(self, tokens: Sequence[int], computed: int, draw: Draw) -> Chosen:
        """Runs everything not yet computed, in chunks, and draws the token after it."""
        chosen = None
        while computed < len(tokens):
            stop = min(computed + CHUNK_TOKENS, len(tokens))
            last = stop == len(tokens)
            pages = tuple(self._pages(g, computed, stop) for g in range(len(self.setup.pages)))
            item = Item(self._requests, tuple(tokens[computed:stop]), computed, len(tokens), pages, draw if last else None)
            self._steps += 1
            results = self.ranks.step(Step(self._steps, (item,)))
            if last:
                [result] = results
                if result.chosen is None:
                    raise ShardwiseError(f"generation ended at token {len(tokens)}: {result.error}")
                chosen = result.chosen
            computed = stop
        assert chosen is not None
        return chosen

    def _pages(self, group: int, start: int, stop: int) -> Pages:
        """The pages that tokens start..stop write and read: all so far, or in a ring as far as the window looks back."""
        window, count = self.setup.layout.cache[group].window, self.setup.pages[group]
        first = 0 if window is None else max(0, start - window + 1) // PAGE_TOKENS
        places = range(first, -(-stop // PAGE_TOKENS))
        assert len(places) <= count
        return Pages(first * PAGE_TOKENS, tuple(place % count for place in places))
