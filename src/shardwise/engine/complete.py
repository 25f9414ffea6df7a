"""The events of one request become text: characters as they become certain, stop strings cut, log-probabilities named.

The one place that knows how tokens turn into a `RequestOutput`. It knows neither templates, nor threads, nor where the
text goes; what the text decides (a stop string) it only reports.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shardwise.engine.outputs import CompletionOutput, Logprob, Logprobs, Metrics, RequestOutput
from shardwise.engine.stops import StopStrings
from shardwise.engine.text import Detokenizer, Tokenizer
from shardwise.sched.events import Emitted, Ended, Event, Finish, Scored
from shardwise.sched.request import RequestOutputKind, SamplingParams
from shardwise.sched.step import Chosen


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to continue: its ids, and the text that they were made of. `stops` end the answer besides the request's own."""

    text: str | None
    ids: tuple[int, ...]
    stops: tuple[str, ...] = ()
    tenant: str = ""


class Transcript:
    """One request: `feed` it its events in their order, and take `output` at any time: all so far, or what is new.

    What was given out as new is not kept, so that a long stream costs no more memory than a short one.

    Surplus tokens, which an engine may have made before it heard of a stop string, are left out.
    """

    def __init__(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        tokenizer: Tokenizer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.request_id = request_id
        self.ended: Ended | None = None
        self._prompt, self._params, self._tokenizer, self._clock = prompt, params, tokenizer, clock
        self._choices = [_Choice(n, tokenizer, prompt.ids, params) for n in range(params.n)]
        self._scores: list[Logprobs | None] | None = None if params.prompt_logprobs is None else [None]
        # One list for all outputs, as one of its scores: copies for every token would cost more than the token.
        self._ids = list(prompt.ids)
        self._begun = clock()
        self._first_s: float | None = None
        self._total_s: float | None = None
        self._fresh: dict[int, None] = {}  # choices of which something came since `news`
        self._told = False  # some of it was given out, and is not kept

    @property
    def tokens(self) -> int:
        """How many were generated, over all choices."""
        return sum(choice.tokens for choice in self._choices)

    def feed(self, event: Event) -> int | None:
        """Takes one event. Returns the choice that its text has just ended, which the engine cannot know."""
        if isinstance(event, Scored):
            if self._scores is not None:
                self._scores = [*self._scores, *(told(self._tokenizer, chosen) for chosen in event.scores)]
            return None
        if isinstance(event, Ended):
            self.ended = event
            self._total_s = self._clock() - self._begun
            for index, choice in enumerate(self._choices):
                if choice.close("length" if self._params.max_tokens == 0 else "abort"):
                    self._fresh[index] = None
            return None
        assert isinstance(event, Emitted)
        if self._first_s is None:
            self._first_s = self._clock() - self._begun
        choice = self._choices[event.choice]
        if choice.whole.finish_reason is not None:
            return None
        self._fresh[event.choice] = None
        return event.choice if choice.push(event.chosen, event.finish) else None

    def news(self) -> list[CompletionOutput]:
        """What came since the last call, of each choice of which something came; its end is told once. As with the outputs of
        DELTA, none of it is kept."""
        fresh, self._fresh, self._told = self._fresh, {}, True
        return [self._choices[index].news() for index in fresh]

    @property
    def scores(self) -> list[Logprobs | None] | None:
        """The log-probabilities of the prompt so far: complete with the first token. None where nobody asked."""
        return self._scores

    def output(self, kind: RequestOutputKind = RequestOutputKind.CUMULATIVE) -> RequestOutput:
        """All so far, or with DELTA what came since the last call; after a first DELTA there is no other kind."""
        delta = kind is RequestOutputKind.DELTA
        assert delta or not self._told, f"{kind.name} of a request of which some was given out as a delta, and not kept"
        self._told = delta
        return RequestOutput(
            request_id=self.request_id,
            prompt=self._prompt.text,
            prompt_token_ids=self._ids,
            prompt_logprobs=self._scores,
            outputs=[choice.news() if delta else choice.copy() for choice in self._choices],
            finished=self.ended is not None,
            metrics=Metrics(self._first_s, self._total_s, self.ended.preempted if self.ended else 0),
            num_cached_tokens=self.ended.cached if self.ended else None,
        )


class _Choice:
    """One continuation; `whole` is it so far, or since it was last told. `tokens` are all of it."""

    def __init__(self, index: int, tokenizer: Tokenizer, prompt: Sequence[int], params: SamplingParams) -> None:
        scored = params.logprobs is not None
        self.whole = CompletionOutput(index, "", [], 0.0 if scored else None, [] if scored else None)
        self._params, self._tokenizer = params, tokenizer
        self._characters = Detokenizer(tokenizer, skip_special_tokens=params.skip_special_tokens, after=prompt)
        self._stops = StopStrings(params.stop, include=params.include_stop_str_in_output)
        self.tokens = 0

    def push(self, chosen: Chosen, finish: Finish | None) -> bool:
        """One more token; whether its text ended the continuation, which has not ended before."""
        whole = self.whole
        whole.token_ids.append(chosen.token)
        self.tokens += 1
        if whole.logprobs is not None and whole.cumulative_logprob is not None:
            whole.logprobs.append(told(self._tokenizer, chosen, ranked=self._params.logprob_token_ids is None))
            whole.cumulative_logprob += chosen.logprob
        if self._params.detokenize:
            self._read(chosen.token, finish)
        if self._stops.matched is not None:
            whole.finish_reason, whole.stop_reason = "stop", self._stops.matched
            return finish is None
        if finish == "stop" and chosen.token in self._params.stop_token_ids:
            whole.stop_reason = chosen.token
        whole.finish_reason = finish
        return False

    def _read(self, token: int, finish: Finish | None) -> None:
        """Adds the text that a token makes certain; all of it with the last one."""
        # An end token need not be a special one, but it is no text, unless what stops is asked for.
        silent = finish == "stop" and not self._params.include_stop_str_in_output and self._is_end(token)
        text = "" if silent else self._characters.push(token)
        if finish:
            text += self._characters.finish()
        # As in vLLM, stop strings are looked for in what comes after `min_tokens`.
        if self.tokens > self._params.min_tokens:
            text = self._stops.push(text)
        if finish:
            text += self._stops.finish()
        self.whole.text += text

    def _is_end(self, token: int) -> bool:
        """Whether it was an end token that stopped, or what is written is complete without one."""
        params = self._params
        eos = () if params.ignore_eos else self._tokenizer.eos_ids
        return params.structured_outputs is None or token in params.stop_token_ids or token in eos

    def close(self, finish: Finish) -> bool:
        """No more tokens come: what was held back is text after all. Whether it had not ended before."""
        if self.whole.finished:
            return False
        self.whole.finish_reason = finish
        if self._params.detokenize:
            self.whole.text += self._stops.push(self._characters.finish()) + self._stops.finish()
        return True

    def copy(self) -> CompletionOutput:
        """It as it is now."""
        whole = self.whole
        logprobs = None if whole.logprobs is None else whole.logprobs[:]
        # By place: one is made for every token, and `dataclasses.replace` takes five times as long.
        return CompletionOutput(
            whole.index,
            whole.text,
            whole.token_ids[:],
            whole.cumulative_logprob,
            logprobs,
            whole.finish_reason,
            whole.stop_reason,
        )

    def news(self) -> CompletionOutput:
        """What came since it was last told."""
        fresh = self.whole
        self.whole = CompletionOutput(
            fresh.index,
            "",
            [],
            fresh.cumulative_logprob,
            None if fresh.logprobs is None else [],
            fresh.finish_reason,
            fresh.stop_reason,
        )
        return fresh


def told(tokenizer: Tokenizer, chosen: Chosen, *, ranked: bool = True) -> Logprobs:
    """The log-probabilities at one place, with texts: the token itself first, then the likeliest ones; where they are not
    `ranked`, those that were named."""
    text = tokenizer.token_text
    found = {chosen.token: Logprob(chosen.logprob, chosen.rank, text(chosen.token))}
    for rank, (token, logprob) in enumerate(chosen.top, start=1):
        if token != chosen.token:
            found[token] = Logprob(logprob, rank if ranked else None, text(token))
    return found
