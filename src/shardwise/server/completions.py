"""`/v1/completions`: text or token ids are continued as they are."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from msgspec import UNSET

from shardwise.engine.complete import Prompt
from shardwise.engine.outputs import CompletionOutput, Logprobs
from shardwise.engine.prompts import listed, read_prompt
from shardwise.engine.text import Detokenizer, Tokenizer
from shardwise.errors import RequestError
from shardwise.sched.request import SamplingParams
from shardwise.server.call import Call
from shardwise.server.completions_body import CompletionBody, CompletionReply, TextChoice
from shardwise.server.fields import check_count
from shardwise.server.fits import check_fits
from shardwise.server.frames import Frames, begun, known, new_id
from shardwise.server.job import Job, Usage
from shardwise.server.logprobs import Offsets, Speller, TextLogprobs, joined, prompt_shape, wanted_beside
from shardwise.server.pace import Pace
from shardwise.server.refusal import Refusal
from shardwise.server.reply import DONE, Json, Reply
from shardwise.server.route import Route
from shardwise.server.sampling import (
    ID_BYTES,
    SCORE_BYTES,
    check_choices,
    check_names_scores,
    check_prompt_scores,
    check_repeated,
    given,
    sampling,
    shortened,
)
from shardwise.server.service import Service
from shardwise.server.turn import started, tenant
from shardwise.server.usage import told

LONG_PROMPT = 256
"""Tokens; to tell of a longer prompt would keep the loop from others for milliseconds."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A body as it will run: `params` for each of `prompts`; `keep` of the choices of each are given back."""

    body: CompletionBody
    prompts: Sequence[Prompt]
    params: SamplingParams
    keep: int


async def complete(service: Service, call: Call, body: CompletionBody) -> Reply:
    """All at once, or as a stream."""
    model, made = service.model(body.model), new_id("cmpl-", body.request_id)
    asked = await service.read(read, service, call, body)
    job = await started(service, call, asked.prompts, [asked.params] * len(asked.prompts), body.priority)
    texts = Texts(service, asked, job)
    head = known(service.engine.setup, "text_completion", made, model)
    if body.stream:
        return await begun(_stream(service, job, texts, Frames(head, body.stream_options)))
    pace = Pace()
    async with job:
        async for batch in job:
            for prompt, output in batch:
                await pace.step()
                if texts.is_long(prompt, output):
                    await service.read(texts.take, prompt, output)
                else:
                    texts.take(prompt, output)
        return Json(CompletionReply(**head, choices=texts.choices(), usage=told(job.usage)))


async def _stream(service: Service, job: Job, texts: Texts, frames: Frames) -> AsyncGenerator[bytes, None]:
    pace = Pace()
    async with job:
        yield b""
        async for batch in job:
            usage = job.usage if frames.counts else None
            made: list[bytes] = []
            for prompt, output in batch:
                await pace.step()
                if texts.is_long(prompt, output):
                    made.append(await service.read(texts.frame, frames, usage, prompt, output, long=True))
                else:
                    made.append(texts.frame(frames, usage, prompt, output))
            yield b"".join(made)
        if frames.ends_with_usage:
            yield frames.usage(job.usage)
        yield DONE


def read(service: Service, call: Call, body: CompletionBody) -> Asked:
    """Checks and tokenises; blocks. RequestError or Refusal for what cannot run."""
    if body.suffix:
        raise Refusal(
            400, "suffix: this server continues texts and fills no gaps; put what the model should know into the prompt",
            param="suffix",
        )  # fmt: skip
    check_prompt_scores(body.prompt_logprobs, streams=body.stream)
    check_names_scores(body.logprob_token_ids, asked=body.logprobs is not None)
    params = sampling(service, _values(body))
    keep = params.n
    if body.best_of:
        params = _best_of(service, body, params)
    if body.prompt == []:
        raise RequestError("prompt is an empty list; give at least one text, or token ids")
    given_prompts = listed(body.prompt)
    count = len(given_prompts)
    check_count(count, service.settings.max_prompts, "prompt")
    prompts = []
    for n, one in enumerate(given_prompts):
        prompt = _prompt(service, call, body, one, f"prompt[{n}]" if count > 1 else "prompt")
        check_fits(service.engine.setup, prompt.ids, params, "prompt")
        prompts.append(prompt)
    if params.n > 1:
        again = sum(_repeated(service, body, params, prompt) for prompt in prompts)
        check_repeated(service, params.n, again, "best_of" if params.n > keep else "n")
    return Asked(body, prompts, params, keep)


def _repeated(service: Service, body: CompletionBody, params: SamplingParams, prompt: Prompt) -> int:
    """How many bytes of a prompt, about, each choice tells."""
    text = len(text_of(service.front.tokenizer, body, prompt).encode()) if body.echo else 0
    scored = bool(body.echo and body.logprobs is not None) + (body.prompt_logprobs is not None)
    scores = SCORE_BYTES * scored * (1 + (params.prompt_logprobs or 0))
    return text + len(prompt.ids) * (scores + ID_BYTES * bool(body.return_token_ids))


def text_of(tokenizer: Tokenizer, body: CompletionBody, prompt: Prompt) -> str:
    """The text of a prompt, as far as it is used."""
    cut = body.truncate_prompt_tokens is not None
    return tokenizer.decode(prompt.ids) if prompt.text is None or cut else prompt.text


def _values(body: CompletionBody) -> dict[str, object]:
    """The sampling fields; with `echo`, the prompt is scored as the answer is."""
    values = given(body)
    if body.logprobs is not None:
        values["logprobs"] = body.logprobs
    if body.echo and (body.logprobs is not None or body.max_tokens == 0):
        values["prompt_logprobs"] = max(body.logprobs or 0, body.prompt_logprobs or 0)
    return values


def _best_of(service: Service, body: CompletionBody, params: SamplingParams) -> SamplingParams:
    """As many as `best_of`, scored."""
    best_of = body.best_of or 1
    if best_of < params.n:
        raise Refusal(400, f"best_of is {best_of} and n {params.n}; draw at least as many as are given back", param="best_of")
    if best_of > 1 and body.stream:
        raise Refusal(400, f"best_of is {best_of}: which is best is known at the end; leave out stream", param="best_of")
    if best_of == params.n:
        return params
    check_choices(service, best_of, "best_of")
    return replace(params, n=best_of, logprobs=0 if params.logprobs is None else params.logprobs)


def _prompt(service: Service, call: Call, body: CompletionBody, one: object, name: str) -> Prompt:
    found = read_prompt(one, service.front.tokenizer, name, add_special_tokens=body.add_special_tokens)
    ids = shortened(service, found.ids, body.truncate_prompt_tokens)
    return replace(found, ids=ids, tenant=tenant(call, body.cache_salt))


class Texts:
    """The answers of one body as they come: what is new, and all of it."""

    def __init__(self, service: Service, asked: Asked, job: Job) -> None:
        self._asked, self._job, self._tokenizer = asked, job, service.front.tokenizer
        self._n = asked.params.n
        self._speller = Speller(self._tokenizer, by_id=bool(asked.body.return_tokens_as_token_ids))
        self._tells_prompt = bool(asked.body.echo or asked.body.prompt_logprobs is not None)
        self._open: dict[int, Offsets | None] = {}
        self._whole: dict[int, TextChoice] = {}
        self._drawn: dict[int, list[float]] = {}

    def is_long(self, prompt: int, output: CompletionOutput) -> bool:
        """Whether `output` brings what takes long to tell: a long prompt, to be echoed or with its scores."""
        if not self._tells_prompt or len(self._asked.prompts[prompt].ids) <= LONG_PROMPT:
            return False
        return prompt * self._n + output.index not in self._open

    def frame(self, frames: Frames, usage: Usage | None, prompt: int, output: CompletionOutput, *, long: bool = False) -> bytes:
        """What is new of a choice, as a stream tells it."""
        return frames.choice(self.news(prompt, output), usage, long=long)

    def news(self, prompt: int, output: CompletionOutput) -> TextChoice:
        """What is new of a choice of one prompt."""
        index = prompt * self._n + output.index
        new = TextChoice(index, output.text, finish_reason=output.finish_reason)
        if index not in self._open:
            self._begin(new, prompt)
        if (offsets := self._open[index]) is not None and output.logprobs is not None:
            new.logprobs = joined(new.logprobs, offsets.read(output.token_ids, output.logprobs))
        if self._asked.body.return_token_ids:
            new.token_ids = output.token_ids
        if output.finish_reason is not None:
            new.stop_reason = output.stop_reason
        return new

    def _begin(self, new: TextChoice, number: int) -> None:
        """Adds what the first news of a choice tells of its prompt."""
        body, prompt, scores = self._asked.body, self._asked.prompts[number], self._job.scores(number)
        echoed = self._echoed(prompt) if body.echo else ""
        new.text = echoed + new.text
        self._open[new.index] = None
        if body.logprobs is not None:
            new.logprobs = self._prompt_logprobs(prompt, scores) if body.echo else None
            skip = self._asked.params.skip_special_tokens
            after = Detokenizer(self._tokenizer, skip_special_tokens=skip, after=prompt.ids)
            self._open[new.index] = Offsets(self._speller, after, wanted_beside(self._asked.params), len(echoed))
        if body.return_token_ids:
            new.prompt_token_ids = list(prompt.ids)
        if body.prompt_logprobs is not None:
            new.prompt_logprobs = prompt_shape(scores)

    def _echoed(self, prompt: Prompt) -> str:
        return text_of(self._tokenizer, self._asked.body, prompt)

    def _prompt_logprobs(self, prompt: Prompt, scores: Sequence[Logprobs | None] | None) -> TextLogprobs:
        assert scores is not None and self._asked.body.logprobs is not None
        top = None if wanted_beside(self._asked.params) is None else self._asked.body.logprobs
        return Offsets(self._speller, Detokenizer(self._tokenizer), top).read(prompt.ids, scores)

    def take(self, prompt: int, output: CompletionOutput) -> None:
        """Adds what is new of a choice to the whole."""
        new = self.news(prompt, output)
        if self._asked.keep < self._n:
            drawn = self._drawn.setdefault(new.index, [])
            drawn += [next(iter(place.values())).logprob for place in output.logprobs or ()]
        whole = self._whole.setdefault(new.index, new)
        if whole is new:
            return
        whole.text += new.text
        whole.logprobs = joined(whole.logprobs, new.logprobs)
        if whole.token_ids is not UNSET and new.token_ids is not UNSET:
            whole.token_ids += new.token_ids
        whole.finish_reason, whole.stop_reason = new.finish_reason, new.stop_reason

    def choices(self) -> list[TextChoice]:
        """All in their order; of `best_of` the best, numbered anew."""
        keep = self._asked.keep
        found = []
        for prompt in range(len(self._asked.prompts)):
            mine = [self._whole[prompt * self._n + choice] for choice in range(self._n)]
            if keep < self._n:
                mine = sorted(mine, key=lambda each: -fmean(self._drawn[each.index]))[:keep]
                for choice, each in enumerate(mine):
                    each.index = prompt * keep + choice
            found += mine
        return found


ROUTES = (
    Route(
        "POST",
        ("/v1/completions",),
        complete,
        "Continue a text.",
        "text",
        body=CompletionBody,
        reply=CompletionReply,
        streams=True,
        queued=True,
        example={"prompt": "Once upon a time", "max_tokens": 20},
    ),
)
