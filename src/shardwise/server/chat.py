"""`/v1/chat/completions`: a conversation is answered, with reasoning and tool calls told apart from what is said."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from msgspec import UNSET

from shardwise.engine.outputs import Logprobs
from shardwise.errors import RequestError
from shardwise.sched.checks import shown
from shardwise.server.answer.choice import Named
from shardwise.server.answer.pieces import Argued, Called, Message, Piece, Said, Thought
from shardwise.server.answer.tools import Offer, chat_offer, functions_offer
from shardwise.server.call import Call
from shardwise.server.chat_body import (
    CallDelta,
    CallReply,
    ChatBody,
    ChatChoice,
    ChatReply,
    ChunkChoice,
    Delta,
    FunctionDelta,
    FunctionReply,
    MessageReply,
)
from shardwise.server.conversation import template_of, variables_of
from shardwise.server.fits import renamed
from shardwise.server.frames import Frames, begun, known, new_id
from shardwise.server.logprobs import ChatLogprobs, Speller, TokenLogprob, prompt_shape, wanted_beside
from shardwise.server.refusal import Refusal
from shardwise.server.reply import DONE, Json, Reply
from shardwise.server.route import Route
from shardwise.server.sampling import check_names_scores, check_prompt_scores, check_repeated, given, sampling
from shardwise.server.service import Service
from shardwise.server.turn import News, Talk, Turn, talk
from shardwise.server.usage import told


async def chat(service: Service, call: Call, body: ChatBody) -> Reply:
    """All at once, or as a stream."""
    model, made = service.model(body.model), new_id("chatcmpl-", body.request_id)
    turn = await service.read(read, service, body)
    head = known(service.engine.setup, "chat.completion", made, model)
    if body.service_tier is not None:
        head["service_tier"] = "default"
    running = await talk(service, call, turn)
    answers = Answers(service, body, turn)
    if body.stream:
        return await begun(_stream(running, answers, {**head, "object": "chat.completion.chunk"}))
    async with running as spoken:
        async for batch in spoken:
            for news in batch:
                answers.take(news)
        if body.return_token_ids:
            head["prompt_token_ids"] = list(spoken.prompt_ids)
        if body.prompt_logprobs is not None:
            head["prompt_logprobs"] = await service.read(prompt_shape, spoken.prompt_logprobs)
        return Json(ChatReply(**head, choices=answers.choices(), usage=told(spoken.usage)))


async def _stream(
    running: AbstractAsyncContextManager[Talk], answers: Answers, head: dict[str, Any]
) -> AsyncGenerator[bytes, None]:
    frames = Frames(head, answers.body.stream_options)
    async with running as spoken:
        yield b""
        first = frames
        if answers.body.return_token_ids:
            first = Frames({**head, "prompt_token_ids": list(spoken.prompt_ids)}, answers.body.stream_options)
        async for batch in spoken:
            usage = spoken.usage if frames.counts else None
            made = []
            for news in batch:
                for chunk in answers.news(news):
                    made.append(first.choice(chunk, usage))
                    first = frames
            if made:
                yield b"".join(made)
        if frames.ends_with_usage:
            yield frames.usage(spoken.usage)
        yield DONE


def read(service: Service, body: ChatBody) -> Turn:
    """Checks a body; RequestError or Refusal for what cannot run."""
    check_prompt_scores(body.prompt_logprobs, streams=body.stream)
    if body.modalities is not None and body.modalities != ["text"]:
        raise Refusal(400, f'modalities is {shown(body.modalities)}; this model writes text: ["text"]', param="modalities")
    check_names_scores(body.logprob_token_ids, asked=body.logprobs is True)
    values = given(body)
    for name in ("logprobs", "top_logprobs", "max_completion_tokens"):
        if (value := getattr(body, name)) is not None:
            values[name] = value
    newer_name = body.max_tokens is None and body.max_completion_tokens is not None
    limit = "max_completion_tokens" if newer_name else "max_tokens"
    with renamed(max_tokens=limit):
        if 0 in (body.max_tokens, body.max_completion_tokens):
            raise RequestError("max_tokens is 0; an answer has at least one token")
        params = sampling(service, values, max_tokens=None)
    check_echo(service, body, params.n)
    offer = offered(body)
    return Turn(
        messages=newer(body.messages),
        params=params,
        tools=offer.tools,
        offered="tools" if body.functions is None else "functions",
        tool_choice=offer.choice,
        parallel=offer.parallel,
        variables=variables_of(body.chat_template_kwargs, body.reasoning_effort, body.thinking.type if body.thinking else None),
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        priority=body.priority,
        salt=body.cache_salt or "",
        documents=body.documents,
        template=template_of(service, body.chat_template),
        truncate=body.truncate_prompt_tokens,
        budget=budget(body),
        special=body.add_special_tokens,
        limit=limit,
    )


def check_echo(service: Service, body: ChatBody, choices: int) -> None:
    """Refusal where so many choices would repeat too much."""
    if body.echo:
        check_repeated(service, choices, len(_echoed(body).encode()))


BUDGETS = ("thinking_token_budget", "thinking_budget", "thinking_budget_tokens", "reasoning_budget_tokens")


def budget(body: ChatBody) -> int | None:
    """The most tokens of reasoning, under any of its names: vLLM's first, SGLang's and Qwen's, llama.cpp's, Anthropic's."""
    found = {name: value for name in BUDGETS if (value := getattr(body, name)) is not None}
    if body.thinking is not None and body.thinking.type == "enabled" and body.thinking.budget_tokens is not None:
        found["thinking.budget_tokens"] = body.thinking.budget_tokens
    if len(set(found.values())) > 1:
        raise RequestError(f"{' and '.join(found)} are one thing under several names, and differ; give one of them")
    most = next(iter(found.values()), -1)
    return None if most == -1 else most


def offered(body: ChatBody) -> Offer:
    """The tools, under their newer or their older name."""
    if body.functions is None:
        return chat_offer(body.tools, body.tool_choice, body.parallel_tool_calls)
    if body.tools is not None:
        raise RequestError("functions is the older name of tools; give one of them")
    return functions_offer(body.functions, body.function_call)


def newer(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """With calls and their results in the newer form, which templates know."""
    found = []
    for message in messages:
        if message.get("function_call") is not None and not message.get("tool_calls"):
            rest = {key: value for key, value in message.items() if key != "function_call"}
            message = {**rest, "tool_calls": [{"type": "function", "function": message["function_call"]}]}
        if message.get("role") == "function":
            message = {**message, "role": "tool"}
        found.append(message)
    return found


class _Choice:
    """One choice so far: `message` where all is told at once, and what waits for the next frame of a stream."""

    def __init__(self) -> None:
        self.message = Message()
        self.begun = False
        self.logprobs: list[TokenLogprob] = []
        self.token_ids: list[int] = []
        self.last: News | None = None


class Answers:
    """The n answers of one body as they come, in the shape of its API."""

    def __init__(self, service: Service, body: ChatBody, turn: Turn) -> None:
        self.body = body
        self._speller = Speller(service.front.tokenizer, by_id=bool(body.return_tokens_as_token_ids))
        self._top = wanted_beside(turn.params)
        self._named = isinstance(turn.tool_choice, Named)
        self._older = body.functions is not None
        self._echo = _echoed(body) if body.echo else ""
        self._choices = [_Choice() for _ in range(turn.params.n)]

    def news(self, news: News) -> list[ChunkChoice]:
        """The frames that tell what is new of one choice."""
        choice = self._choices[news.choice]
        made: list[ChunkChoice] = []
        if not choice.begun:
            made.append(ChunkChoice(news.choice, Delta(role="assistant", content="")))
        found = deltas(self._pieces(choice, news), older=self._older)
        self._keep(choice, news)
        if not found and news.finish is not None:
            found = [Delta()]
        made += [ChunkChoice(news.choice, delta) for delta in found]
        if found:
            told = made[-1]
            if self.body.logprobs:
                told.logprobs, choice.logprobs = ChatLogprobs(choice.logprobs), []
            if self.body.return_token_ids:
                told.token_ids, choice.token_ids = choice.token_ids, []
            if news.finish is not None:
                told.finish_reason, told.stop_reason = self._finish(news), news.stop_reason
        return made

    def _pieces(self, choice: _Choice, news: News) -> Sequence[Piece]:
        pieces = news.pieces
        if not self.body.include_reasoning:
            pieces = [piece for piece in pieces if type(piece) is not Thought]
        if not choice.begun:
            choice.begun = True
            if self._echo:
                pieces = [Said(self._echo), *pieces]
        return pieces

    def _keep(self, choice: _Choice, news: News) -> None:
        logprobs: Sequence[Logprobs] | None = news.logprobs
        if self.body.logprobs and logprobs:
            choice.logprobs += self._speller.chat(logprobs, self._top)
        if self.body.return_token_ids:
            choice.token_ids += news.token_ids

    def _finish(self, news: News) -> str:
        """With OpenAI and vLLM, calls end with "tool_calls" where the model chose to call, "stop" where the tool was named."""
        if news.finish != "tool_calls":
            return news.finish or "stop"
        return "function_call" if self._older else "stop" if self._named else "tool_calls"

    def take(self, news: News) -> None:
        """Adds what is new of one choice to the whole."""
        choice = self._choices[news.choice]
        for piece in self._pieces(choice, news):
            choice.message.add(piece)
        self._keep(choice, news)
        choice.last = news

    def choices(self) -> list[ChatChoice]:
        """All that was taken."""
        return [self._whole(index, choice) for index, choice in enumerate(self._choices)]

    def _whole(self, index: int, choice: _Choice) -> ChatChoice:
        message, last = choice.message, choice.last
        assert last is not None and last.finish is not None, "a choice that has not ended"
        reply = MessageReply(content=message.content)
        if message.reasoning is not None:
            reply.reasoning_content = reply.reasoning = message.reasoning
        if message.calls and self._older:
            _, name, arguments = message.calls[0]
            reply.function_call = FunctionReply(name, arguments)
        elif message.calls:
            reply.tool_calls = [CallReply(made, FunctionReply(name, arguments)) for made, name, arguments in message.calls]
        return ChatChoice(
            index=index,
            message=reply,
            logprobs=ChatLogprobs(choice.logprobs) if self.body.logprobs else None,
            finish_reason=self._finish(last),
            stop_reason=last.stop_reason,
            token_ids=choice.token_ids if self.body.return_token_ids else UNSET,
        )


def _echoed(body: ChatBody) -> str:
    """The text of the last message where the answer goes on with it (as in vLLM)."""
    last = body.messages[-1] if body.messages else {}
    content = last.get("content")
    if last.get("role") != "assistant" or not content:
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))


def deltas(pieces: Sequence[Piece], *, older: bool = False) -> list[Delta]:
    """As few deltas as tell the pieces, none with more than one call: there are clients that read only the first of a list.

    `older`: a call is `function_call`."""
    found: list[Delta] = []
    for piece in pieces:
        last = found[-1] if found else None
        match piece:
            case Said(text):
                if last is None:
                    found.append(Delta(content=text))
                else:
                    last.content = (last.content or "") + text
            case Thought(text):
                if last is None:
                    found.append(last := Delta(reasoning_content=""))
                last.reasoning_content = last.reasoning = (last.reasoning_content or "") + text
            case Called(index, made, name):
                _begin(found, index, FunctionDelta(name, ""), made, older=older)
            case Argued(index, text):
                function = _open(last, index, older=older)
                if function is None:
                    _begin(found, index, FunctionDelta(None, text), None, older=older)
                else:
                    function.arguments = (function.arguments or "") + text
    return found


def _open(delta: Delta | None, index: int, *, older: bool) -> FunctionDelta | None:
    """The call in a delta, if it is the one of that index."""
    if delta is None:
        return None
    if older:
        return delta.function_call
    return delta.tool_calls[0].function if delta.tool_calls and delta.tool_calls[0].index == index else None


def _begin(found: list[Delta], index: int, function: FunctionDelta, made: str | None, *, older: bool) -> None:
    """Puts a call into the last delta, or into a new one if that has a call."""
    if not found or found[-1].tool_calls or found[-1].function_call:
        found.append(Delta())
    if older:
        found[-1].function_call = function
    else:
        found[-1].tool_calls = [CallDelta(index, made, None if made is None else "function", function)]


ROUTES = (
    Route(
        "POST",
        ("/v1/chat/completions",),
        chat,
        "Answer a conversation.",
        "text",
        body=ChatBody,
        reply=ChatReply,
        streams=True,
        queued=True,
        example={"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 30},
    ),
)
