"""Reads one choice's text as it comes: reasoning, then content and calls. However the text is cut, the message is the same."""

from __future__ import annotations

from collections.abc import Sequence

from shardwise.server.answer.choice import Tool, ToolChoice, callable_tools
from shardwise.server.answer.harmony import harmony
from shardwise.server.answer.heldcalls import coder, pythonic
from shardwise.server.answer.jsoncalls import DEEPSEEK, KIMI, Source, bare, hermes, marked, mistral, rest
from shardwise.server.answer.outlet import Outlet
from shardwise.server.answer.pieces import Piece
from shardwise.server.answer.style import Style
from shardwise.server.answer.tape import NotCall, Reading, Tape


class Reader:
    """Give it the text of one choice with `feed`, then `finish` it once; both return the pieces that have become certain.

    Text goes out as soon as it cannot be part of a mark; time is linear in the text, memory bounded by one call (1 MiB).
    A call of a tool that was not offered, or with arguments that are no JSON object, is content, verbatim; so is one that is
    cut short before it is certain, unless a call was `forced`: then it is a call as soon as its name was read, and before that
    nothing.
    """

    def __init__(self, style: Style, tools: Sequence[Tool], *, reads_calls: bool, parallel: bool, forced: bool = False) -> None:
        """Use `reader`."""
        self._forced = forced
        self._tape = Tape()
        reads = reads_calls and bool(tools)
        self._outlet = Outlet(reads_calls=reads, parallel=parallel, short_ids=style.calls == "mistral")
        source = Source(self._tape, self._outlet, frozenset(tool.name for tool in tools))
        self._reading = _answer(source, style, tools if reads else ())
        self._finished = False
        next(self._reading)

    def feed(self, text: str) -> list[Piece]:
        """The pieces that the next text makes certain; often none."""
        assert not self._finished, "fed after its end"
        if text:
            self._tape.feed(text)
            next(self._reading)
        return self._outlet.collect()

    def finish(self) -> list[Piece]:
        """The rest, once no more text comes."""
        self._tape.ended = True
        if self._forced:
            self._outlet.mute()
        for _ in self._reading:
            raise AssertionError("a reader waits for text after its end")
        if self._forced:
            self._outlet.call_held()
        if not self._finished:
            self._outlet.finish()
        self._finished = True
        return self._outlet.collect()


def reader(style: Style, tools: Sequence[Tool], choice: ToolChoice, parallel: bool) -> Reader:
    """A reader for one choice of a request.

    With `none`, and with `auto` where the model's own way is not known, calls are content, as it stands. `parallel=False`
    keeps the first call alone.
    """
    reads_calls = choice != "none" and (style.calls != "plain" or choice != "auto")
    forced = choice not in ("none", "auto")
    return Reader(style, callable_tools(tools, choice), reads_calls=reads_calls, parallel=parallel, forced=forced)


def _answer(source: Source, style: Style, tools: Sequence[Tool]) -> Reading[None]:
    """Reads to the end of the answer; waits once more there, so that the end is always the last thing it learns."""
    yield  # for the first text
    if style.think:
        yield from _thought(source, style.think, opened=style.opened)
    if tools or style.calls == "harmony":
        match style.calls:
            case "hermes":
                yield from hermes(source)
            case "coder":
                yield from coder(source, tools)
            case "mistral":
                yield from mistral(source)
            case "pythonic":
                yield from pythonic(source)
            case "deepseek":
                yield from marked(source, DEEPSEEK)
            case "kimi":
                yield from marked(source, KIMI)
            case "harmony":
                yield from harmony(source)
            case "llama3":
                yield from bare(source, "<|python_tag|>")
            case "plain":
                yield from bare(source, None)
    yield from rest(source)


def _thought(source: Source, marks: tuple[str, str], *, opened: bool) -> Reading[None]:
    """Read the reasoning that an answer begins with. Marks that come later are content; without an end, all is reasoning."""
    tape = source.tape

    def opening() -> Reading[None]:
        yield from tape.space()
        yield from tape.expect(marks[0])

    if opened:
        yield from _skip_again(source, marks[0])
    elif not (yield from source.attempt(opening)):
        return
    yield from tape.until((marks[1],), source.outlet.think)
    tape.release()
    source.outlet.end_thought()


def _skip_again(source: Source, mark: str) -> Reading[None]:
    """Some models open their reasoning once more, although the prompt did."""
    tape = source.tape
    tape.hold()
    try:
        yield from tape.space()
        yield from tape.literal(mark)
    except NotCall:
        pass
    tape.release()
