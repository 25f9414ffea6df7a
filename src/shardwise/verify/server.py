"""A running OpenAI-compatible server as the reference: log-likelihoods by /v1/completions, and the tokens it would take.

Servers differ, and what one lacks is found out with the first prompt: vLLM echoes a prompt of token ids with log-probabilities
and names tokens by id (vllm/entrypoints/openai/completion/serving.py); llama.cpp gives ids and log-probabilities of new tokens
alone, and refuses `echo` or leaves it out (ggml-org/llama.cpp, tools/server/server-common.cpp, issue 27174).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import msgspec

from shardwise.engine.setup import Setup
from shardwise.errors import UserError
from shardwise.verify.client import Client, complaint
from shardwise.verify.drive import Advance
from shardwise.verify.trace import Place, Text, Trace

UNSUPPORTED = (400, 404, 405, 422, 500, 501)
"""What servers answer to a request that asks for something they lack. llama.cpp says 500 to `echo`."""

EXTRAS = {"return_tokens_as_token_ids": True, "return_token_ids": True, "ignore_eos": True}
"""vLLM's, of which llama.cpp knows the last; others may refuse them."""

MARK = "token_id:"
"""vLLM's way of naming a token by its id."""


class _Token(msgspec.Struct):
    id: int
    logprob: float


class _Logprobs(msgspec.Struct):
    """OpenAI's two lists; or llama.cpp's `content`."""

    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    content: list[_Token] | None = None


class _Choice(msgspec.Struct):
    logprobs: _Logprobs | None = None
    token_ids: list[int] | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


@dataclass(frozen=True, slots=True)
class Way:
    """How this server is asked: prompts as ids or as text, whether it echoes them, and with vLLM's fields or without."""

    ids: bool
    echo: bool
    extras: bool


class Server:
    """A reference. `greedy`: it says which tokens it takes, by their ids."""

    def __init__(self, client: Client, model: str, name: str) -> None:
        self.name = name
        self.greedy = True
        self._client, self._model = client, model
        self._way: Way | None = None

    def traces(self, setup: Setup, texts: Sequence[Text], limit: int, stride: int, advance: Advance) -> list[Trace]:
        """What it says of each text and of up to `limit` tokens that it then takes for the likeliest; no logits."""
        vocabulary, found = setup.layout.model.vocab, []
        for text in texts:
            found.append(self._trace(text, limit, vocabulary))
            advance(len(text.ids) + limit - 1)
        return found

    def _trace(self, text: Text, limit: int, vocabulary: int) -> Trace:
        refusals = []
        for way in self._ways(text):
            status, data = self._client.ask("completions", _request(self._model, text, limit, way))
            if status == 200:
                answer = _decoded(data, _Answer, "completions")
                if (trace := _read(answer, text, limit, way, vocabulary)) is not None:
                    self._way, self.greedy = way, self.greedy and len(trace.tokens) > trace.prompt
                    return trace
                refusals.append("it gave no log-probabilities of the prompt, nor of tokens with their ids")
            elif status in UNSUPPORTED:
                refusals.append(f"{status}: {complaint(data) or 'nothing'}")
            else:
                raise UserError(f"{self.name} answered {status}: {complaint(data) or 'nothing'}")
        raise UserError(f"{self.name} cannot be compared with on {text.name}: {refusals[0]}")

    def _ways(self, text: Text) -> Iterator[Way]:
        """The one that has worked; before one has, all of them, the most telling first."""
        ways = (Way(*chosen) for chosen in product((True, False), repeat=3)) if self._way is None else iter((self._way,))
        yield from (way for way in ways if way.ids or text.text is not None)


def open_server(url: str, key: str | None, model: str | None, *, client: Client | None = None) -> Server:
    """The server at `url`, asked for its models: `model` is one of them, or left out where there is only one.

    UserError where it cannot be reached, lets us not in, or is no such server.
    """
    client = client or Client(url, key)
    status, data = client.ask("models")
    if status in (401, 403):
        raise UserError(f"{client.url} answered {status}: give its key by --api-key, or in SHARDWISE_API_KEY")
    if status != 200:
        raise UserError(f"{client.url}/v1/models answered {status}: {complaint(data) or 'nothing'}; is it OpenAI-compatible?")
    names = [entry.id for entry in _decoded(data, _Models, "models").data]
    if model is None and len(names) != 1:
        raise UserError(f"{client.url} serves {len(names)} models; choose one by --served-model: {_some(names)}")
    if model is not None and model not in names:
        raise UserError(f"{client.url} does not serve {model!r}, but {_some(names)}")
    chosen = names[0] if model is None else model
    return Server(client, chosen, f"{client.url} ({chosen[:60]})")


def _request(model: str, text: Text, limit: int, way: Way) -> bytes:
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(text.ids) if way.ids else text.text,
        "max_tokens": limit,
        "temperature": 0,
        "logprobs": 1,
        "stream": False,
        **({"echo": True} if way.echo else {}),
        **(EXTRAS if way.extras else {}),
    }
    return json.dumps(body).encode()


# --- answers --------------------------------------------------------------------------------------------------------------


def _read(answer: _Answer, text: Text, limit: int, way: Way, vocabulary: int) -> Trace | None:
    """The answer as a trace; None where it does not say enough. UserError where it contradicts itself or our tokens."""
    if len(answer.choices) != 1:
        raise UserError(f"the server gave {len(answer.choices)} answers to one prompt")
    [choice] = answer.choices
    prompt = len(text.ids)
    counted = answer.usage.prompt_tokens if answer.usage else None
    if counted is not None and counted != prompt:
        raise _another(text, f"it counts {counted} tokens where this model's tokenizer makes {prompt}")
    logprobs, ids = _listed(choice, vocabulary)
    if not logprobs:
        return None
    # The first token of a prompt follows nothing: an echo begins with null. Some servers leave `echo` out silently.
    echoed = way.echo and logprobs[0] is None
    fresh = len(logprobs) - prompt if echoed else len(logprobs)
    if not 0 <= fresh <= limit:
        raise _another(text, f"it answered with {len(logprobs)} tokens to {prompt} and at most {limit} new ones")
    if not echoed and (ids is None or (not way.ids and counted is None)):
        return None
    if ids is not None and len(ids) not in (fresh, len(logprobs)):
        raise UserError(f"the server gave {len(ids)} token ids and {fresh} new tokens")
    if echoed and ids is not None and len(ids) == len(logprobs):
        wrong = next((i for i in range(prompt) if ids[i] != text.ids[i]), None)
        if wrong is not None:
            raise _another(text, f"its token {wrong} is {ids[wrong]}, and this model's is {text.ids[wrong]}")
    new = ids[len(ids) - fresh :] if ids is not None else []
    kept = logprobs[1 : prompt + len(new)] if echoed else [*[None] * (prompt - 1), *logprobs]
    if None in kept[0 if echoed else prompt - 1 :]:
        raise UserError(f"the server left out log-probabilities in the midst of {text.name}")
    return Trace(prompt, [*text.ids, *new], [Place(logprob) for logprob in kept])


def _listed(choice: _Choice, vocabulary: int) -> tuple[list[float | None], list[int] | None]:
    """(log-probabilities, ids or None) of all tokens in an answer."""
    given = choice.logprobs
    if given is None:
        return [], None
    if given.content is not None:
        logprobs: list[float | None] = [token.logprob for token in given.content]
        ids: list[int] | None = [token.id for token in given.content]
    elif given.token_logprobs is not None:
        logprobs, tokens = given.token_logprobs, given.tokens or []
        if len(tokens) != len(logprobs):
            raise UserError(f"the server gave {len(tokens)} tokens and {len(logprobs)} log-probabilities of them")
        named = all(token.startswith(MARK) and token.removeprefix(MARK).isdecimal() for token in tokens)
        ids = [int(token.removeprefix(MARK)[:12]) for token in tokens] if named else choice.token_ids
        if ids is not None and len(ids) > len(logprobs):
            raise UserError(f"the server gave {len(ids)} token ids and {len(logprobs)} log-probabilities")
    else:
        return [], None
    for logprob in logprobs:
        if logprob is not None and not (math.isfinite(logprob) and logprob < 1e-3):
            raise UserError(f"the server gave {logprob} as a log-probability")
    for token in ids or ():
        if not 0 <= token < vocabulary:
            raise UserError(
                f"the server gave token id {token}, beyond this model's vocabulary of {vocabulary}: it is another model"
            )
    return logprobs, ids


def _another(text: Text, why: str) -> UserError:
    return UserError(f"the server does not serve this model, or tokenises otherwise: of {text.name}, {why}")


def _decoded(data: bytes, kind: type[Any], path: str) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UserError(f"what the server answered at /v1/{path} is not what OpenAI's API gives: {error}") from None


def _some(names: Sequence[str]) -> str:
    shown = [name[:60] for name in names[:6]]
    return (", ".join(shown) or "none") + (f" and {len(names) - 6} more" if len(names) > 6 else "")
