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
    """One request: `feed` it its events in their order, and take `output` at any time.

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

    @property
    def tokens(self) -> int:
        """How many were generated, over all choices."""
        return sum(len(choice.whole.token_ids) for choice in self._choices)

    def feed(self, event: Event) -> int | None:
        """Takes one event. Returns the choice that its text has just ended, which the engine cannot know."""
        if isinstance(event, Scored):
            if self._scores is not None:
                self._scores = [*self._scores, *(told(self._tokenizer, chosen) for chosen in event.scores)]
            return None
        if isinstance(event, Ended):
            self.ended = event
            self._total_s = self._clock() - self._begun
            for choice in self._choices:
                choice.close("length" if self._params.max_tokens == 0 else "abort")
            return None
        assert isinstance(event, Emitted)
        if self._first_s is None:
            self._first_s = self._clock() - self._begun
        matched = self._choices[event.choice].push(event.chosen, event.finish)
        return event.choice if matched else None

    def output(self, kind: RequestOutputKind = RequestOutputKind.CUMULATIVE) -> RequestOutput:
        """All so far, or with DELTA what came since the last call."""
        delta = kind is RequestOutputKind.DELTA
        return RequestOutput(
            request_id=self.request_id,
            prompt=self._prompt.text,
            prompt_token_ids=self._ids,
            prompt_logprobs=self._scores,
            outputs=[choice.news() if delta else choice.since(0, 0) for choice in self._choices],
            finished=self.ended is not None,
            metrics=Metrics(self._first_s, self._total_s, self.ended.preempted if self.ended else 0),
            num_cached_tokens=self.ended.cached if self.ended else None,
        )


class _Choice:
    """One continuation; `whole` is it so far."""

    def __init__(self, index: int, tokenizer: Tokenizer, prompt: Sequence[int], params: SamplingParams) -> None:
        scored = params.logprobs is not None
        self.whole = CompletionOutput(index, "", [], 0.0 if scored else None, [] if scored else None)
        self._params, self._tokenizer = params, tokenizer
        self._characters = Detokenizer(tokenizer, skip_special_tokens=params.skip_special_tokens, after=prompt)
        self._stops = StopStrings(params.stop, include=params.include_stop_str_in_output)
        self._told = (0, 0)  # tokens and characters that deltas have given out

    def push(self, chosen: Chosen, finish: Finish | None) -> bool:
        """One more token; whether its text ended the continuation."""
        whole = self.whole
        if whole.finished:
            return False
        whole.token_ids.append(chosen.token)
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
        if len(self.whole.token_ids) > self._params.min_tokens:
            text = self._stops.push(text)
        if finish:
            text += self._stops.finish()
        self.whole.text += text

    def _is_end(self, token: int) -> bool:
        """Whether it was an end token that stopped, or what is written is complete without one."""
        params = self._params
        eos = () if params.ignore_eos else self._tokenizer.eos_ids
        return params.structured_outputs is None or token in params.stop_token_ids or token in eos

    def close(self, finish: Finish) -> None:
        """No more tokens come: what was held back is text after all."""
        if self.whole.finished:
            return
        self.whole.finish_reason = finish
        if self._params.detokenize:
            self.whole.text += self._stops.push(self._characters.finish()) + self._stops.finish()

    def since(self, tokens: int, characters: int) -> CompletionOutput:
        """A copy without what came before."""
        whole = self.whole
        logprobs = None if whole.logprobs is None else whole.logprobs[tokens:]
        # By place: a delta is made for every token, and `dataclasses.replace` takes five times as long.
        return CompletionOutput(
            whole.index,
            whole.text[characters:],
            whole.token_ids[tokens:],
            whole.cumulative_logprob,
            logprobs,
            whole.finish_reason,
            whole.stop_reason,
        )

    def news(self) -> CompletionOutput:
        tokens, characters = self._told
        self._told = len(self.whole.token_ids), len(self.whole.text)
        return self.since(tokens, characters)


def told(tokenizer: Tokenizer, chosen: Chosen, *, ranked: bool = True) -> Logprobs:
    """The log-probabilities at one place, with texts: the token itself first, then the likeliest ones; where they are not
    `ranked`, those that were named."""
    found = {chosen.token: Logprob(chosen.logprob, chosen.rank, tokenizer.token_text(chosen.token))}
    for rank, (token, logprob) in enumerate(chosen.top, start=1):
        if token != chosen.token:
            found[token] = Logprob(logprob, rank if ranked else None, tokenizer.token_text(token))
    return found
