"""`/v1/chat/completions/derender`: what came of a rendered conversation elsewhere becomes the message that a client gets."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import msgspec
from msgspec import Meta

from shardwise.engine.text import Tokenizer
from shardwise.sched.request import MAX_CHOICES, MOST, SamplingParams
from shardwise.server.answer.pieces import Called
from shardwise.server.answer.reader import reader
from shardwise.server.call import Call
from shardwise.server.chat import Answers, check_echo
from shardwise.server.chat import read as read_turn
from shardwise.server.chat_body import ChatBody, ChatReply
from shardwise.server.fields import ModelName
from shardwise.server.fits import told_of
from shardwise.server.frames import known, new_id
from shardwise.server.job import Usage
from shardwise.server.refusal import Refusal
from shardwise.server.reply import Json, Reply
from shardwise.server.route import Route
from shardwise.server.service import Service
from shardwise.server.shape import shaped
from shardwise.server.turn import Finish, News, Turn, rendered, style_of
from shardwise.server.usage import told


class GeneratedChoice(msgspec.Struct, kw_only=True):
    """One continuation, as token ids or as text with its special tokens."""

    index: int = 0
    token_ids: list[int] | None = None
    text: str | None = None
    finish_reason: Finish | None = None


class Generated(msgspec.Struct, kw_only=True):
    """What `/inference/v1/generate` answered."""

    choices: Annotated[list[GeneratedChoice], Meta(min_length=1, max_length=MAX_CHOICES)]
    request_id: str | None = None


class DerenderBody(msgspec.Struct, kw_only=True):
    """What was generated, and the conversation that it answers, whose template and tools say how it is to be read."""

    generate_response: Annotated[Generated | None, Meta(description="The continuations, numbered from 0.")]
    chat_request: Annotated[ChatBody | None, Meta(description="What was rendered; it says which tools there are.")] = None
    prompt_tokens: Annotated[int, Meta(ge=0, le=MOST, description="How long the prompt was, for usage.")] = 0
    model: ModelName | None = None


async def derender(service: Service, _call: Call, body: DerenderBody) -> Reply:
    """The answer that the tokens are."""
    model = service.model(body.model)
    return Json(await service.read(_reply, service, body, model))


def _reply(service: Service, body: DerenderBody, model: str) -> ChatReply:
    """Blocks; RequestError or Refusal for what cannot be read."""
    generated, asked, tokenizer = body.generate_response, body.chat_request, service.front.tokenizer
    assert generated is not None, "null is not given, and the field has to be"
    given = generated.choices
    if asked is not None and asked.stream:
        raise Refusal(400, "chat_request.stream is true; what is derendered comes all at once: leave it out", param="stream")
    if sorted(choice.index for choice in given) != list(range(len(given))):
        raise Refusal(400, "the indices of generate_response.choices are not 0, 1, 2 and so on, each once")
    turn = Turn(messages=(), params=SamplingParams()) if asked is None else read_turn(service, asked)
    if asked is not None:
        check_echo(service, asked, len(given))
    turn = replace(turn, params=replace(turn.params, n=len(given)), budget=None)
    style = style_of(service, turn, "" if asked is None else rendered(service, turn).text or "")
    _, style = shaped(turn, style, tokenizer)
    answers = Answers(service, asked or ChatBody(messages=[]), turn)
    count = 0
    for choice in given:
        text, ids = _text(choice, tokenizer, skip_special_tokens=not style.needs_special_tokens)
        count += len(ids)
        read = reader(style, turn.tools, turn.tool_choice, turn.parallel)
        pieces = [*read.feed(text), *read.finish()]
        finish = choice.finish_reason or "stop"
        if finish == "stop" and any(type(piece) is Called for piece in pieces):
            finish = "tool_calls"
        answers.take(News(choice.index, pieces, ids, finish=finish))
    made = new_id("chatcmpl-") if generated.request_id is None else new_id("", generated.request_id)
    head = known(service.engine.setup, "chat.completion", made, model)
    return ChatReply(**head, choices=answers.choices(), usage=told(Usage(body.prompt_tokens, count, 0)))


def _text(choice: GeneratedChoice, tokenizer: Tokenizer, *, skip_special_tokens: bool) -> tuple[str, list[int]]:
    """The text of a choice, and its ids; the token that ended it is no text."""
    if (choice.token_ids is None) == (choice.text is None):
        raise Refusal(400, f"choice {choice.index} takes one of token_ids and text")
    if choice.text is not None:
        return choice.text, tokenizer.encode(choice.text, add_special_tokens=False)
    ids = choice.token_ids or []
    shown = ids[:-1] if ids and ids[-1] in tokenizer.eos_ids else ids
    with told_of(f"generate_response.choices[{choice.index}].token_ids"):
        return tokenizer.decode(shown, skip_special_tokens=skip_special_tokens), ids


ROUTES = (
    Route(
        "POST", ("/v1/chat/completions/derender",), derender, "Read tokens as the answer to a conversation.", "tokens",
        body=DerenderBody, reply=ChatReply, example={"generate_response": {"choices": [{"token_ids": [9, 10, 11]}]}},
    ),
)  # fmt: skip
