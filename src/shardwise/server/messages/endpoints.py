"""POST /v1/messages and /v1/messages/count_tokens, and the shape of their errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager

from shardwise.server.call import Call
from shardwise.server.frames import begun, new_id
from shardwise.server.messages.body import CountBody, MessagesBody
from shardwise.server.messages.output import AssistantMessage, MessageUsage, StopReason, TokensCount, frame
from shardwise.server.messages.request import ask
from shardwise.server.messages.writer import Writer, used
from shardwise.server.refusal import Refusal
from shardwise.server.reply import Json, Reply
from shardwise.server.route import Route
from shardwise.server.service import Service
from shardwise.server.turn import News, Talk, counted, talk

KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Anthropic's error types by status; any other refusal is an invalid_request_error."""

PINGS = 0.8
"""A ping comes after so much of `keep_alive_s` without an event: before the comment that keeps other streams alive."""


async def create(service: Service, call: Call, body: MessagesBody) -> Reply:
    """The assistant's next turn, whole or as a stream."""
    message = AssistantMessage(id=new_id("msg_"), model=service.model(body.model), usage=MessageUsage(0, 0))
    turn = await service.read(ask, service, body)
    talking = await talk(service, call, turn)
    if body.stream:
        return await begun(_stream(service, body, message, talking))
    writer = Writer(message)
    async with talking as talked:
        end = _End(body)
        async for several in talked:
            end.take(several, writer)
        end.write(talked, writer)
    return Json(message)


async def _stream(
    service: Service, body: MessagesBody, message: AssistantMessage, talking: AbstractAsyncContextManager[Talk]
) -> AsyncGenerator[bytes, None]:
    out: list[bytes] = []
    writer = Writer(message, lambda event: out.append(frame(event)))
    every_s = service.settings.keep_alive_s * PINGS
    async with talking as talked:
        yield b""
        message.usage = MessageUsage(len(talked.prompt_ids), 0)
        writer.begin()
        end, news = _End(body), aiter(talked)
        while True:
            if out:
                yield b"".join(out)
                out.clear()
            try:
                # A talk may be left while it waits, and waited for again: it takes nothing before it has something to give.
                async with asyncio.timeout(every_s) as patience:
                    several = await anext(news)
            except StopAsyncIteration:
                break
            except TimeoutError:
                if not patience.expired():
                    raise
                writer.ping()
            else:
                end.take(several, writer)
        end.write(talked, writer)
    yield b"".join(out)


class _End:
    """How an answer ends, in Anthropic's words."""

    def __init__(self, body: MessagesBody) -> None:
        self._body = body
        self._last: News | None = None

    def take(self, several: list[News], writer: Writer) -> None:
        """Hands the news on, and remembers the last of them."""
        for news in several:
            writer.take(news.pieces)
            if news.finish is not None:
                self._last = news

    def write(self, talked: Talk, writer: Writer) -> None:
        """Ends the message."""
        reason, stop = self._reason(talked)
        writer.end(reason, stop, used(talked.usage))

    def _reason(self, talked: Talk) -> tuple[StopReason, str | None]:
        last = self._last
        if last is not None and last.finish == "tool_calls":
            return "tool_use", None
        if last is not None and last.finish == "length":
            full = talked.usage.completion < self._body.max_tokens
            return "model_context_window_exceeded" if full else "max_tokens", None
        if last is not None and isinstance(last.stop_reason, str) and last.stop_reason in (self._body.stop_sequences or ()):
            return "stop_sequence", last.stop_reason
        return "end_turn", None


async def count_tokens(service: Service, _call: Call, body: CountBody) -> Reply:
    """How many tokens a request's input has; nothing is run."""
    service.model(body.model)
    turn = await service.read(ask, service, body)
    return Json(TokensCount(await service.read(counted, service, turn)))


def errors(refusal: Refusal, call: Call) -> dict[str, object]:
    """The body that clients of Anthropic's API read."""
    kind = KINDS.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": refusal.message}, "request_id": call.id}


EXAMPLE: dict[str, object] = {"messages": [{"role": "user", "content": "Tell me a story."}]}

ROUTES: tuple[Route, ...] = (
    Route(
        "POST", ("/v1/messages",), create, "Answer a conversation, as Anthropic's API does.", "messages",
        queued=True, body=MessagesBody, reply=AssistantMessage, streams=True, errors=errors,
        example={**EXAMPLE, "max_tokens": 60},
    ),
    Route(
        "POST", ("/v1/messages/count_tokens",), count_tokens, "Count the tokens of a conversation.", "messages",
        body=CountBody, reply=TokensCount, errors=errors, example=EXAMPLE,
    ),
)  # fmt: skip
