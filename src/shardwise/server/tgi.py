"""TGI's own endpoints, so that `huggingface_hub.InferenceClient.text_generation` works here.

Meanings are TGI's: the checkpoint's recommended values are not used, and the text keeps the stop sequence that ended it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from msgspec import UNSET

from shardwise.engine.complete import Prompt
from shardwise.engine.outputs import CompletionOutput, Logprobs
from shardwise.engine.prompts import read_prompt
from shardwise.engine.text import Detokenizer
from shardwise.errors import ShardwiseError
from shardwise.sched.fields import sampling_fields
from shardwise.sched.request import MAX_STOPS, SamplingParams
from shardwise.sched.structured_fields import SPELLINGS
from shardwise.server.call import Call
from shardwise.server.fits import check_fits, renamed
from shardwise.server.frames import begun
from shardwise.server.health import installed
from shardwise.server.job import Job
from shardwise.server.logprobs import finite, likeliest
from shardwise.server.refusal import Refusal
from shardwise.server.reply import Json, Reply, sse
from shardwise.server.route import Route
from shardwise.server.sampling import SCORE_BYTES, check_choices, check_repeated, shortened
from shardwise.server.service import Service
from shardwise.server.tgi_body import (
    AboutReply,
    Details,
    Finish,
    Parameters,
    PrefillToken,
    Sequence,
    StreamDetails,
    StreamReply,
    TextBody,
    TextReply,
    Token,
)
from shardwise.server.turn import started, tenant

USUAL_TOKENS = 100
"""As many as TGI gives where nobody says; fewer where the context has no room."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A body as it will run."""

    wanted: Parameters
    inputs: str
    prompt: Prompt
    params: SamplingParams


async def generate(service: Service, call: Call, body: TextBody) -> Reply:
    """All at once."""
    return Json(await _whole(service, call, body))


async def generate_stream(service: Service, call: Call, body: TextBody) -> Reply:
    """Token by token."""
    asked = await service.read(_read, service, call, body, streams=True)
    job = await started(service, call, [asked.prompt], [asked.params])
    reply = await begun(_stream(service, job, asked))
    return replace(reply, failed=lambda refusal: sse(errors(refusal, call)))


async def either(service: Service, call: Call, body: TextBody) -> Reply:
    """As `stream` says; all at once it is a list of one, as in TGI."""
    return await generate_stream(service, call, body) if body.stream else Json([await _whole(service, call, body)])


def errors(refusal: Refusal, _call: Call) -> dict[str, object]:
    """A refusal in TGI's shape."""
    kinds = {429: "overloaded", 503: "overloaded", 500: "generation"}
    return {"error": refusal.message, "error_type": kinds.get(refusal.status, "validation")}


async def _whole(service: Service, call: Call, body: TextBody) -> TextReply:
    asked = await service.read(_read, service, call, body, streams=False)
    async with await started(service, call, [asked.prompt], [asked.params]) as job:
        texts = [_Text(service, asked) for _ in range(asked.params.n)]
        async for batch in job:
            for _, output in batch:
                texts[output.index].read(output)
        prefill: list[PrefillToken] = []
        if asked.wanted.decoder_input_details and (scores := job.scores(0)):
            prefill = await service.read(_prefill, service, asked.prompt, scores)
    best, *others = sorted(texts, key=lambda text: -fmean(token.logprob for token in text.tokens))
    return TextReply(best.full, _details(asked, best, others, prefill) if asked.wanted.details else None)


async def _stream(service: Service, job: Job, asked: Asked) -> AsyncGenerator[bytes, None]:
    async with job:
        yield b""
        text = _Text(service, asked)
        async for batch in job:
            frames = [sse(event) for _, output in batch for event in _events(asked, text, text.read(output))]
            if frames:
                yield b"".join(frames)


def _events(asked: Asked, text: _Text, fresh: range) -> list[StreamReply]:
    """One for each fresh token. The last of all has the whole text."""
    made = [StreamReply(index=n + 1, token=text.tokens[n]) for n in fresh]
    if asked.wanted.top_n_tokens:
        for event, n in zip(made, fresh, strict=True):
            event.top_tokens = text.tops[n]
    if text.finish is not None and made:
        made[-1].generated_text = text.full
        if asked.wanted.details:
            made[-1].details = StreamDetails(text.finish, len(text.tokens), len(asked.prompt.ids), asked.wanted.seed)
    return made


def _read(service: Service, call: Call, body: TextBody, *, streams: bool) -> Asked:
    """Checks and tokenises; blocks. RequestError or Refusal for what cannot run."""
    wanted = body.parameters or Parameters()
    sampled = _check(wanted, streams=streams)
    found = read_prompt(body.inputs, service.front.tokenizer, "inputs")
    prompt = replace(found, ids=shortened(service, found.ids, wanted.truncate, "truncate"), tenant=tenant(call, None))
    room = max(1, service.engine.setup.context - len(prompt.ids))
    values: dict[str, object] = {
        "n": wanted.best_of or 1,
        "max_tokens": min(USUAL_TOKENS, room) if wanted.max_new_tokens is None else wanted.max_new_tokens,
        "temperature": (1.0 if wanted.temperature is None else wanted.temperature) if sampled else 0.0,
        "logprobs": wanted.top_n_tokens or 0,
        "prompt_logprobs": 0 if wanted.decoder_input_details else None,
        "include_stop_str_in_output": True,
    }
    for name in ("top_k", "top_p", "repetition_penalty", "frequency_penalty", "seed", "stop"):
        if (value := getattr(wanted, name)) is not None:
            values[name] = value
    check_choices(service, wanted.best_of or 1, "parameters.best_of")
    if wanted.grammar is not None:
        values["structured_outputs"] = SPELLINGS["grammar"](wanted.grammar, "parameters.grammar")
    with renamed(max_tokens="max_new_tokens"):
        params = SamplingParams(**sampling_fields(values))  # type: ignore[arg-type]  # they are checked there
    check_fits(service.engine.setup, prompt.ids, params, "inputs", limit="max_new_tokens")
    told = len(body.inputs.encode()) if wanted.return_full_text else 0
    told += SCORE_BYTES * len(prompt.ids) if wanted.decoder_input_details else 0
    check_repeated(service, params.n, told, "best_of")
    return Asked(wanted, body.inputs, prompt, params)


def _check(wanted: Parameters, *, streams: bool) -> bool:
    """Whether tokens are drawn, which in TGI follows from any field that says how. Refusal for what is not done here."""
    refused = {
        "typical_p": "typical sampling is not done here; use top_p" if wanted.typical_p not in (None, 1.0) else None,
        "watermark": "texts are not marked here; leave it out" if wanted.watermark else None,
        "adapter_id": "there are no adapters here; leave it out" if wanted.adapter_id else None,
    }
    for name, reason in refused.items():
        if reason:
            raise Refusal(400, f"parameters.{name}: {reason}", param=name)
    sampled = bool(wanted.do_sample or wanted.temperature not in (None, 1.0) or wanted.top_k or wanted.top_p not in (None, 1.0))
    best_of = wanted.best_of or 1
    if best_of > 1 and not sampled:
        raise Refusal(400, f"parameters.best_of is {best_of}, and the likeliest token is always the same; set do_sample")
    if best_of > 1 and streams:
        raise Refusal(400, f"parameters.best_of is {best_of}: which is best is known at the end; use /generate")
    if wanted.decoder_input_details and streams:
        raise Refusal(400, "parameters.decoder_input_details is told all at once; use /generate")
    return sampled


class _Text:
    """One continuation as it comes, token by token."""

    def __init__(self, service: Service, asked: Asked) -> None:
        self.tokens: list[Token] = []
        self.tops: list[list[Token]] = []
        self.finish: Finish | None = None
        self._tokenizer, self._top = service.front.tokenizer, asked.wanted.top_n_tokens or 0
        self._characters = Detokenizer(self._tokenizer, after=asked.prompt.ids)
        self._parts = [asked.inputs] if asked.wanted.return_full_text else []

    @property
    def full(self) -> str:
        return "".join(self._parts)

    def read(self, output: CompletionOutput) -> range:
        """Takes what is new. Returns where it lies in `tokens`."""
        before = len(self.tokens)
        if self.finish is not None:
            return range(before, before)
        self._parts.append(output.text)
        for token, place in zip(output.token_ids, output.logprobs or (), strict=True):
            self.tokens.append(self._token(token, place))
            if self._top:
                self.tops.append([self._alone(each, finite(one)) for each, one in likeliest(place, self._top)])
        if output.finish_reason == "abort" or (output.finish_reason and not self.tokens):
            raise ShardwiseError("the request was aborted")
        if output.finish_reason is not None:
            stopped: Finish = "stop_sequence" if isinstance(output.stop_reason, str) else "eos_token"
            self.finish = stopped if output.finish_reason == "stop" else "length"
        return range(before, len(self.tokens))

    def _token(self, token: int, place: Logprobs) -> Token:
        """With the characters that it completes: together, the texts are the text, and no half of one is ever shown."""
        found = self._alone(token, finite(place[token]))
        if not found.special:
            found.text = self._characters.push(token)
        return found

    def _alone(self, token: int, logprob: float) -> Token:
        return Token(token, self._tokenizer.token_text(token), logprob, token in self._tokenizer.special_ids)


def _details(asked: Asked, best: _Text, others: list[_Text], prefill: list[PrefillToken]) -> Details:
    seed, tops = asked.wanted.seed, asked.wanted.top_n_tokens

    def shared(text: _Text) -> dict[str, Any]:
        assert text.finish is not None, "a text that has not ended"
        return {
            "finish_reason": text.finish, "generated_tokens": len(text.tokens), "seed": seed, "prefill": prefill,
            "tokens": text.tokens, "top_tokens": text.tops if tops else UNSET,
        }  # fmt: skip

    rest = [Sequence(generated_text=text.full, **shared(text)) for text in others]
    return Details(**shared(best), best_of_sequences=rest or UNSET)


def _prefill(service: Service, prompt: Prompt, scores: list[Logprobs | None]) -> list[PrefillToken]:
    text = service.front.tokenizer.token_text
    return [
        PrefillToken(token, text(token), None if place is None else finite(place[token]))
        for token, place in zip(prompt.ids, scores, strict=True)
    ]


async def about(service: Service, _call: Call, _parameters: object) -> Reply:
    """What is served."""
    setup = service.engine.setup
    return Json(
        AboutReply(
            model_id=service.names[0],
            model_dtype=setup.layout.dtype,
            model_device_type=setup.device,
            max_concurrent_requests=setup.limits.sequences,
            max_best_of=min(service.settings.max_choices, setup.limits.sequences),
            max_stop_sequences=MAX_STOPS,
            max_input_tokens=setup.context - 1,
            max_total_tokens=setup.context,
            version=installed(),
        )
    )


ROUTES = (
    Route(
        "POST", ("/generate",), generate, "Continue a text (TGI).", "tgi", body=TextBody, reply=TextReply, errors=errors,
        queued=True, example={"inputs": "Once upon a time", "parameters": {"max_new_tokens": 20}},
    ),
    Route(
        "POST", ("/generate_stream",), generate_stream, "Continue a text, token by token (TGI).", "tgi", body=TextBody,
        reply=StreamReply, streams=True, errors=errors,
        queued=True, example={"inputs": "Once upon a time", "parameters": {"max_new_tokens": 20}},
    ),
    Route(
        "POST", ("/",), either, "Continue a text (TGI, as huggingface_hub calls it).", "tgi", body=TextBody,
        reply=list[TextReply], streams=True, errors=errors, queued=True,
        example={"inputs": "Once upon a time", "stream": True},
    ),
    Route("GET", ("/info",), about, "What is served (TGI).", "tgi", reply=AboutReply),
)  # fmt: skip
