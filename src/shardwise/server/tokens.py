"""Text to tokens and back, and conversations to prompts: what evaluation tools and people who debug templates ask for."""

from __future__ import annotations

from typing import Any

from shardwise.engine.complete import Prompt
from shardwise.engine.text import read_json
from shardwise.sched.request import SamplingParams
from shardwise.server.answer.tools import chat_offer
from shardwise.server.call import Call
from shardwise.server.chat import read as read_turn
from shardwise.server.chat_body import ChatBody
from shardwise.server.conversation import template_of, variables_of
from shardwise.server.fits import told_of
from shardwise.server.refusal import Refusal
from shardwise.server.reply import Json, Reply
from shardwise.server.route import Route
from shardwise.server.service import Service
from shardwise.server.tokens_body import (
    DetokenizeBody,
    DetokenizeReply,
    RenderReply,
    TokenizeBody,
    TokenizeReply,
    TokenizerReply,
)
from shardwise.server.turn import Turn, rendered

NAMED = ("eos_token", "bos_token", "unk_token", "pad_token")
FLAGS = ("add_bos_token", "add_eos_token")


async def tokenize(service: Service, _call: Call, body: TokenizeBody) -> Reply:
    """The ids of a text or a conversation."""
    service.model(body.model)
    return Json(await service.read(_tokenized, service, body))


def _tokenized(service: Service, body: TokenizeBody) -> TokenizeReply:
    ids = _ids(service, body)
    texts = [service.front.tokenizer.token_text(token) for token in ids] if body.return_token_strs else None
    return TokenizeReply(len(ids), service.engine.setup.context, ids, texts)


def _ids(service: Service, body: TokenizeBody) -> list[int]:
    given = [name for name in ("prompt", "content", "messages") if getattr(body, name) is not None]
    if len(given) != 1:
        found = "there is none" if not given else f"there are {' and '.join(given)}"
        raise Refusal(400, f"one of prompt, content and messages is wanted; {found}")
    asked = body.add_special if body.add_special_tokens is None else body.add_special_tokens
    text, special = body.prompt or body.content or "", body.prompt is not None
    if body.messages is not None:
        offer = chat_offer(body.tools)
        turn = Turn(
            messages=body.messages,
            params=SamplingParams(),
            tools=offer.tools,
            tool_choice=offer.choice,
            variables=variables_of(body.chat_template_kwargs),
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            documents=body.documents,
            template=template_of(service, body.chat_template),
        )
        text, special = rendered(service, turn).text or "", False
    return service.front.tokenizer.encode(text, add_special_tokens=special if asked is None else asked)


async def detokenize(service: Service, _call: Call, body: DetokenizeBody) -> Reply:
    """The text of ids."""
    service.model(body.model)
    with told_of("tokens"):
        text = await service.read(service.front.tokenizer.decode, body.tokens, skip_special_tokens=False)
    return Json(DetokenizeReply(text, text))


async def tokenizer(service: Service, _call: Call, _parameters: object) -> Reply:
    """What the tokenizer is like."""
    return Json(await service.read(_told, service))


def _told(service: Service) -> TokenizerReply:
    front, setup = service.front, service.engine.setup
    config = read_json(setup.folder / "tokenizer_config.json")
    flags: dict[str, Any] = {name: config[name] for name in FLAGS if isinstance(config.get(name), bool)}
    named: dict[str, Any] = {name: front.tokenizer.special_tokens.get(name) for name in NAMED}
    return TokenizerReply(
        tokenizer_class=str(config.get("tokenizer_class") or "PreTrainedTokenizerFast"),
        vocab_size=front.tokenizer.vocab_size,
        model_max_length=setup.context,
        chat_template=front.template.source(tools=False),
        **named,
        **flags,
    )


async def render(service: Service, _call: Call, body: ChatBody) -> Reply:
    """The prompt that a request for chat completions would have."""
    model = service.model(body.model)
    prompt = await service.read(_rendered, service, body)
    return Json(RenderReply(prompt.text or "", list(prompt.ids), model))


def _rendered(service: Service, body: ChatBody) -> Prompt:
    return rendered(service, read_turn(service, body))


ROUTES = (
    Route(
        "POST", ("/v1/tokenize",), tokenize, "Turn a text or a conversation into tokens.", "tokens",
        body=TokenizeBody, reply=TokenizeReply, example={"prompt": "Once upon a time"},
    ),
    Route(
        "POST", ("/v1/detokenize",), detokenize, "Turn tokens into text.", "tokens",
        body=DetokenizeBody, reply=DetokenizeReply, example={"tokens": [9, 10, 11]},
    ),
    Route("GET", ("/tokenizer_info",), tokenizer, "Describe the tokenizer.", "tokens", reply=TokenizerReply),
    Route(
        "POST", ("/v1/chat/completions/render", "/apply-template"), render, "Show the prompt that a conversation makes.",
        "tokens", body=ChatBody, reply=RenderReply,
        example={"messages": [{"role": "user", "content": "Tell me a story."}]},
    ),
)  # fmt: skip
