"""POST /v1/responses, and what becomes of a response afterwards: read again, continued, cancelled, deleted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager

import msgspec

from shardwise.errors import RequestError
from shardwise.sched.checks import shown
from shardwise.server.call import Call
from shardwise.server.failure import told
from shardwise.server.frames import begun
from shardwise.server.logprobs import Speller
from shardwise.server.refusal import Refusal
from shardwise.server.reply import Events, Json, Reply
from shardwise.server.responses.body import ResponsesBody
from shardwise.server.responses.items import Item
from shardwise.server.responses.outbox import Outbox
from shardwise.server.responses.output import Counted, Deleted, InputItems, Response
from shardwise.server.responses.request import Asked, ask, check_kept, check_stores
from shardwise.server.responses.writer import Writer, replay, used
from shardwise.server.route import Route
from shardwise.server.service import Service
from shardwise.server.store import Kept, Tape
from shardwise.server.turn import Talk, counted, talk

Talking = AbstractAsyncContextManager[Talk]
MOST_LISTED, LISTED = 100, 20
IGNORED = "X-Ignored-Tools"


async def create(service: Service, call: Call, body: ResponsesBody) -> Reply:
    """A response: whole, as a stream, or made in the background."""
    keep = check_kept(service, body)
    asked = await _asked(service, call, body, keep)
    for kind in asked.ignored:
        service.unknown[f"tools.{kind}"] += 1
    headers = {IGNORED: ", ".join(asked.ignored)} if asked.ignored else {}
    talking = await talk(service, call, asked.turn)
    if body.background:
        return await _background(service, call, asked, talking, headers, stream=bool(body.stream))
    if body.stream:
        return await _stream(service, call, asked, talking, headers)
    async with talking as talked:
        async for _ in _answer(service, asked, talked, _writer(asked)):
            pass
    await _keep(service, call, asked)
    return Json(asked.response, headers=headers)


async def _asked(service: Service, call: Call, body: ResponsesBody, keep: bool) -> Asked:
    earlier: list[Item] = []
    if body.previous_response_id is not None:
        check_stores(service)
        try:
            kept = service.store.get(call.tenant, body.previous_response_id)
        except Refusal as refusal:
            refusal.param = "previous_response_id"
            raise
        if kept.running:
            why = f"response {kept.id} is still being made; go on from it when it is complete"
            raise Refusal(409, why, param="previous_response_id")
        earlier = [*kept.context, *await service.read(_output, kept)]
    return await service.read(ask, service, body, earlier, _finder(service, call), keep=keep)


def _output(kept: Kept) -> list[Item]:
    """What a response came to, as items of the next one's input."""
    return list(msgspec.to_builtins(kept.response.output))


def _finder(service: Service, call: Call) -> Callable[[str], Item | None]:
    """Looks up items that are kept, by their ids."""
    known: dict[str, Item] = {}
    kept = [each for each in service.store.all(call.tenant) if not each.running]

    def find(id: str) -> Item | None:
        while kept and id not in known:
            each = kept.pop(0)
            for item in (*each.context, *_output(each)):
                known.setdefault(item["id"], item)
        return known.get(id)

    return find


async def _answer(service: Service, asked: Asked, talked: Talk, writer: Writer) -> AsyncGenerator[None, None]:
    """Writes the answer; yields whenever there was news, and at the end."""
    finish, speller = None, Speller(service.front.tokenizer)
    async for several in talked:
        for news in several:
            scored = asked.top is not None and news.logprobs is not None
            writer.take(news.pieces, speller.chat(news.logprobs or (), asked.top or 0) if scored else ())
            finish = news.finish or finish
        yield
    writer.end(cut=finish == "length", usage=used(talked.usage))
    yield


def _writer(asked: Asked, out: Outbox | None = None) -> Writer:
    return Writer(asked.response, None if out is None else out.put, origins=asked.origins, sealed=asked.sealed)


async def _stream(service: Service, call: Call, asked: Asked, talking: Talking, headers: Mapping[str, str]) -> Events:
    out = Outbox(service.read)
    writer = _writer(asked, out)

    async def frames() -> AsyncGenerator[bytes, None]:
        async with talking as talked:
            writer.begin()
            await out.seal()
            begun = out.take()
            yield b""
            yield b"".join(begun)
            async for _ in _answer(service, asked, talked, writer):
                await out.seal()
                if asked.response.status != "in_progress":
                    await _keep(service, call, asked)  # before the client hears of the end, and goes on from it
                if made := out.take():
                    yield b"".join(made)

    def failed(refusal: Refusal) -> bytes:
        writer.fail(refusal.message)
        return b"".join(out.take())

    events = await begun(frames())
    return Events(events.frames, headers, failed)


async def _keep(service: Service, call: Call, asked: Asked) -> None:
    if not asked.response.store:
        return
    kept = Kept(asked.response.id, asked.response, asked.items, asked.given)
    kept.bytes = await _size(service, kept)
    service.store.keep(call.tenant, kept)


async def _size(service: Service, kept: Kept) -> int:
    return len(await service.encoded([kept.response, kept.context]))


# --- without the client -----------------------------------------------------------------------------------------------


async def _background(
    service: Service, call: Call, asked: Asked, talking: Talking, headers: Mapping[str, str], *, stream: bool
) -> Reply:
    kept = Kept(asked.response.id, asked.response, asked.items, asked.given, tape=Tape())
    kept.run = asyncio.create_task(_run(service, call, asked, talking, kept))
    service.store.keep(call.tenant, kept)
    await asyncio.sleep(0)  # it begins, so that whoever cancels it finds it in its `try`
    assert kept.tape is not None
    return Events(kept.tape.read(), headers) if stream else Json(asked.response, headers=headers)


async def _run(service: Service, call: Call, asked: Asked, talking: Talking, kept: Kept) -> None:
    """Writes on the tape, whoever reads it. Ends in any case, with an event that says how."""
    assert kept.tape is not None
    out, tape = Outbox(service.read), kept.tape
    writer = _writer(asked, out)
    limit_s = service.settings.request_timeout_s
    try:
        with service.drain.open():
            # It began with the request, of which reading and checking it took some already.
            async with talking as talked, asyncio.timeout(limit_s - (time.monotonic() - call.began)):
                writer.begin()
                await out.seal()
                tape.write(*out.take())
                kept.bytes = await _size(service, kept)
                service.store.shrink()
                async for _ in _answer(service, asked, talked, writer):
                    await out.seal()
                    tape.write(*out.take())
    except asyncio.CancelledError:
        writer.cancel()
    except TimeoutError:
        writer.fail(f"it was not complete after {limit_s:g} s, the time that this server gives a request")
    except Exception as error:
        writer.fail(told(service, error, f"{call.id} ({kept.id})").message)
    finally:
        tape.write(*out.take())
        tape.end()
        # The last frame has the whole response, which is held beside the frames.
        kept.bytes += sum(map(len, tape.frames)) + len(tape.frames[-1])
        service.store.shrink()


async def cancel(service: Service, call: Call, given: Mapping[str, str]) -> Reply:
    """Ends a background response; one that has ended stays as it is."""
    kept = _find(service, call, given)
    if kept.run is None:
        raise Refusal(400, f"response {kept.id} was not made in the background; close its connection to end such a one")
    if not kept.run.done():
        kept.run.cancel()
        await asyncio.wait([kept.run])
    return Json(kept.response)


# --- afterwards -------------------------------------------------------------------------------------------------------


def _find(service: Service, call: Call, given: Mapping[str, str]) -> Kept:
    check_stores(service)
    return service.store.get(call.tenant, given["id"])


async def retrieve(service: Service, call: Call, given: Mapping[str, str]) -> Reply:
    """A response as it is now; with `stream=true` its events, those after `starting_after`."""
    kept = _find(service, call, given)
    start = _whole(given, "starting_after", -1, 2**31) + 1
    if _word(given, "stream", ("false", "true", "False", "True", "0", "1")) in ("false", "False", "0"):
        return Json(kept.response)
    return Events((await service.read(_tape, kept)).read(start))


def _tape(kept: Kept) -> Tape:
    if kept.tape is not None:
        return kept.tape
    tape = Tape()
    tape.frames, tape.ended = replay(kept.response), True
    return tape


async def delete(service: Service, call: Call, given: Mapping[str, str]) -> Reply:
    """Keeps a response no longer; one that runs ends."""
    check_stores(service)
    service.store.drop(call.tenant, given["id"])
    return Json(Deleted(given["id"]))


async def input_items(service: Service, call: Call, given: Mapping[str, str]) -> Reply:
    """What a response was made from, the newest first unless `order=asc`."""
    kept = _find(service, call, given)
    order, limit = _word(given, "order", ("desc", "asc")), _whole(given, "limit", LISTED, MOST_LISTED, least=1)
    items = list(kept.context)
    if order == "desc":
        items.reverse()
    if after := given.get("after"):
        place = next((n for n, item in enumerate(items) if item["id"] == after), None)
        if place is None:
            raise Refusal(400, f"after is {shown(after)}, which is no item of response {kept.id}", param="after")
        items = items[place + 1 :]
    page = [dict(item) for item in items[:limit]]
    first, last = (page[0]["id"], page[-1]["id"]) if page else ("", "")
    return Json(InputItems(page, first, last, len(items) > len(page)))


async def count(service: Service, call: Call, body: ResponsesBody) -> Reply:
    """How many tokens a request's input has, with its tools; nothing is run."""
    asked = await _asked(service, call, body, False)
    return Json(Counted(await service.read(counted, service, asked.turn)))


def _word(given: Mapping[str, str], name: str, words: tuple[str, ...]) -> str:
    """A query parameter that is one of `words`, the first where it is not there."""
    value = given.get(name, words[0])
    if value not in words:
        raise RequestError(f"{name} is {shown(value)}; it takes {' or '.join(words[:2])}")
    return value


def _whole(given: Mapping[str, str], name: str, default: int, most: int, *, least: int = 0) -> int:
    """A query parameter that is a whole number."""
    value = given.get(name)
    if value is None:
        return default
    if not (value.isascii() and value.isdigit() and len(value) < 11 and least <= int(value) <= most):
        raise RequestError(f"{name} is {shown(value)}; it takes a whole number from {least} to {most}")
    return int(value)


EXAMPLE = {"input": "Tell me a story.", "max_output_tokens": 60}

ROUTES: tuple[Route, ...] = (
    Route(
        "POST", ("/v1/responses",), create, "Make a response.", "responses",
        queued=True, body=ResponsesBody, reply=Response, streams=True, example=EXAMPLE,
    ),
    Route(
        "POST", ("/v1/responses/input_tokens",), count, "Count the tokens of an input.", "responses",
        body=ResponsesBody, reply=Counted, example=EXAMPLE,
    ),
    Route("GET", ("/v1/responses/{id}",), retrieve, "Read a kept response.", "responses", reply=Response, streams=True),
    Route("DELETE", ("/v1/responses/{id}",), delete, "Keep a response no longer.", "responses", reply=Deleted),
    Route("POST", ("/v1/responses/{id}/cancel",), cancel, "End a background response.", "responses", reply=Response),
    Route("GET", ("/v1/responses/{id}/input_items",), input_items, "List its input.", "responses", reply=InputItems),
)  # fmt: skip
