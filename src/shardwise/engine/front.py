"""Between people, who have text, and an engine, which knows ids: prompts go in as text, answers come out as text.

Knows no HTTP and no event loop: whoever starts a request gives a `sink` that takes its events where it wants them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from random import Random
from typing import TYPE_CHECKING, Any

from shardwise.engine.complete import Prompt, Transcript
from shardwise.engine.contract import TokenEngine
from shardwise.engine.grammar_check import GrammarCheck
from shardwise.engine.hub import bundled
from shardwise.engine.outputs import RequestOutput
from shardwise.engine.prompts import read_chat, read_prompt
from shardwise.engine.text import Tokenizer, open_tokenizer, read_json
from shardwise.errors import CheckpointError, RequestError, ShardwiseError, Unavailable
from shardwise.sched.events import Event
from shardwise.sched.request import SEEDS, RequestOutputKind, SamplingParams

if TYPE_CHECKING:
    from shardwise.engine.template import ChatTemplate

SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class Running:
    """A request under way: its events become text here, on the thread of whoever calls `feed`."""

    def __init__(self, core: TokenEngine, number: int, transcript: Transcript) -> None:
        self.number, self.transcript = number, transcript
        self._core = core

    def feed(self, event: Event) -> None:
        """Takes one event; a continuation that its text has ended is ended in the engine too."""
        choice = self.transcript.feed(event)
        if choice is not None:
            self._core.finish(self.number, choice)

    @property
    def ended(self) -> bool:
        return self.transcript.ended is not None

    @property
    def tokens(self) -> int:
        """How many were generated, over all choices."""
        return self.transcript.tokens

    def check(self, name: str | None = None) -> None:
        """ShardwiseError where it has failed, RequestError where it had to, Unavailable where there is no room for it any more;
        `name` says which it was."""
        if self.transcript.ended is not None and (reason := self.transcript.ended.error) is not None:
            ended = self.transcript.ended
            kind = RequestError if ended.asked else Unavailable if ended.unfit else ShardwiseError
            raise kind(reason if name is None else f"{name} failed: {reason}")

    def abort(self) -> None:
        """Ends it in the engine, if it has not ended; any thread, any time."""
        self._core.abort(self.number)


class Front:
    """An engine with a tokenizer and a chat template. Safe to share between threads."""

    def __init__(
        self,
        core: TokenEngine,
        tokenizer: Tokenizer | None = None,
        template: ChatTemplate | None = None,
        seeds: Random | None = None,
    ) -> None:
        """`seeds` gives a seed to each request that has none, in their order; without it, chance does."""
        self._seeds = seeds
        self.core = core
        self.tokenizer = open_tokenizer(core.setup.folder) if tokenizer is None else tokenizer
        self._template = template
        self._lock = threading.Lock()
        vocab = core.setup.layout.model.vocab
        self._grammar_check = GrammarCheck(core.setup.folder, vocab)
        self._bad: tuple[Sequence[str], tuple[tuple[int, ...], ...]] = ((), ())
        # A checkpoint's end ids may lie beyond its logits; such a one is never drawn.
        self._eos = tuple(token for token in self.tokenizer.eos_ids if 0 <= token < vocab)

    @property
    def template(self) -> ChatTemplate:
        """The checkpoint's chat template, opened when it is first asked for."""
        with self._lock:
            if self._template is None:
                from shardwise.engine.template import open_template  # jinja2, which plain prompts need not load

                folder = self.core.setup.folder
                # What came with shardwise needs no guard; a stranger's template runs in a process of its own.
                self._template = open_template(folder, isolated=folder != bundled())
            return self._template

    def prompt(self, given: object, name: str = "the prompt") -> Prompt:
        """A prompt of any kind with its ids; RequestError, which calls it `name`, for what is none."""
        return read_prompt(given, self.tokenizer, name)

    def chat(self, messages: object, name: str = "the conversation", **options: Any) -> Prompt:
        """The prompt that a conversation makes; `options` as `ChatTemplate.render` takes them."""
        return read_chat(messages, self.tokenizer, self.template, name, **options)

    def check(self, params: SamplingParams) -> None:
        """RequestError for structured outputs that do not compile, or are too dear. It may take a second, and with the first
        ones until a tokenizer is open, so an event loop calls it on another thread before `start`, which then need not wait."""
        if params.structured_outputs is not None:
            self._grammar_check(params.structured_outputs)

    def bad_ids(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """The ids of words that must not come up. Of the words that were asked for last they are known at once: many prompts
        of one request have the same, and a thousand of them take long to tokenise."""
        known, ids = self._bad
        if known != words:
            ids = bad_ids(words, self.tokenizer)
            self._bad = (words, ids)
        return ids

    def start(
        self,
        prompt: Prompt,
        params: SamplingParams,
        sink: Callable[[Event], None],
        *,
        priority: int = 0,
        request_id: str | None = None,
        key: str = "",
    ) -> Running:
        """Hands a request to the engine. `sink` gets its events on the engine's thread; `Running.feed` is to get them next.
        `key` is what it is known by when it comes again.

        RequestError where it can never run, ShardwiseError where the engine is closed.
        """
        self.check(params)
        params = replace(params, stop=(*params.stop, *prompt.stops)) if prompt.stops and params.detokenize else params
        if params.seed is None and self._seeds is not None:
            params = replace(params, seed=self._seeds.randrange(SEEDS))
        ends = (*(() if params.ignore_eos else self._eos), *params.stop_token_ids)
        number = self.core.submit(
            prompt.ids,
            params,
            sink,
            ends=tuple(dict.fromkeys(ends)),
            bad=self.bad_ids(params.bad_words),
            priority=priority,
            tenant=prompt.tenant,
            key=key,
        )
        name = str(number) if request_id is None else request_id
        return Running(self.core, number, Transcript(name, prompt, params, self.tokenizer))

    def stream(self, prompt: Prompt, params: SamplingParams) -> Generator[RequestOutput, None, None]:
        """One request, as deltas that come at once, the last with its end. Closing the iterator aborts it.

        RequestError where it can never run, ShardwiseError where it fails.
        """
        events: SimpleQueue[Event] = SimpleQueue()
        running = self.start(prompt, params, events.put)
        try:
            while not running.ended:
                running.feed(events.get())
                while not events.empty():
                    running.feed(events.get())
                running.check()
                yield running.transcript.output(RequestOutputKind.DELTA)
        finally:
            running.abort()


def bad_ids(words: Sequence[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """The ids of words that must not come up: of each as it is, and as it stands within a text, behind a space.

    vLLM (`SamplingParams.update_from_tokenizer`) takes the latter only where it has as many tokens, so that a word which is
    one token within a text and two at its beginning comes up all the same; here it does not.
    """
    found: list[tuple[int, ...]] = []
    for word in words:
        found += (tuple(tokenizer.encode(space + word.lstrip(), add_special_tokens=False)) for space in ("", " "))
    return tuple(dict.fromkeys(ids for ids in found if ids))


def sampling_defaults(folder: Path) -> dict[str, Any]:
    """What the checkpoint's generation_config.json recommends, by the names of SamplingParams. As in vLLM, it need not say
    `do_sample`; but where it says false, the likeliest token is taken. Raises CheckpointError for values out of range."""
    path = folder / "generation_config.json"
    given = read_json(path)
    if given.get("do_sample") is False:
        return {"temperature": 0.0}
    found = {key: given[key] for key in SAMPLING_KEYS if given.get(key) is not None}
    try:
        SamplingParams(**found)
    except RequestError as error:
        raise CheckpointError(f"{path}: {error}; mend it, or remove the file") from None
    return found
