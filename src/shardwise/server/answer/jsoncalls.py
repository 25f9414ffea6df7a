"""Calls whose arguments are JSON, in the dialects of models: around one object, or after a name. They stream as they come.

A call is certain once an offered name and the opening of its arguments were read. Until then all is held, and is content if it
turns out to be no call (a tool that was not offered, arguments that are no object). What breaks later ends the arguments where
they stopped being JSON, and the rest is content: nothing is lost, and a client sees that the arguments do not parse.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from shardwise.server.answer.jsontext import MOST_NAME, object_in, short_string, value, whole
from shardwise.server.answer.outlet import Outlet
from shardwise.server.answer.tape import NotCall, Reading, Tape

_ARGUMENTS = ("arguments", "parameters")
_NAME = re.compile(r"[A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Source:
    """Where calls are read from, where they go, and which names count."""

    tape: Tape
    outlet: Outlet
    offered: Collection[str]

    def attempt(self, call: Callable[[], Reading[None]]) -> Reading[bool]:
        """Read what begins a call; what turns out to be none is said. Returns whether it was one.

        Where the text ends inside a call that is certain, what is left of its syntax says nothing, and goes.
        """
        before, self.outlet.held = self.outlet.begun, None
        self.tape.hold()
        try:
            yield from call()
        except NotCall:
            held = self.tape.release()
            if not self.tape.ended:
                self.outlet.held = None
            if not self.tape.over or self.outlet.begun == before:
                self.outlet.say(held)
            return False
        self.tape.release()
        return True

    def begin(self, name: str) -> None:
        """The call is certain: what is held is used up. Raises NotCall for a tool that was not offered."""
        if name not in self.offered:
            raise NotCall
        self.outlet.call(name)
        self.tape.drop()

    def named(self, name: str) -> None:
        """The name of a call was read to its end, if it was offered; nothing of its arguments yet. NotCall if it was not."""
        if name not in self.offered:
            raise NotCall
        self.outlet.held = lambda: [(name, "")]

    def arguments(self) -> Reading[None]:
        """Read the arguments' object and give it on as it comes."""
        yield from value(self.tape, self._argue)

    def _argue(self, text: str) -> None:
        self.outlet.argue(text)
        self.tape.drop()

    def after_name(self, name: str) -> Reading[None]:
        """Read the arguments of `name`, which comes before them in this format."""
        self.named(name)
        yield from self.tape.space()
        if (yield from self.tape.peek()) != "{":
            raise NotCall
        self.begin(name)
        yield from self.arguments()

    # --- one object ---------------------------------------------------------------------------------------------------

    def one_call(self) -> Reading[None]:
        """`{"name": ..., "arguments": {...}}`, in either order; `parameters` is the same, JSON text of an object also.

        An `id` and a `type` may be there and say nothing. Without arguments it is a call without any, as in SGLang.
        """
        tape = self.tape
        yield from tape.expect("{")
        name, arguments, begun, closed = "", "", False, False
        while not closed:
            yield from tape.space()
            key = yield from short_string(tape)
            yield from tape.space()
            yield from tape.expect(":")
            yield from tape.space()
            if key == "name" and not name:
                name = yield from short_string(tape)
                self.named(name)
            elif key in _ARGUMENTS and not arguments and not begun:
                if name and (yield from tape.peek()) == "{":
                    begun = True
                    self.begin(name)
                    yield from self.arguments()
                else:
                    arguments = yield from self._held_arguments()
            elif key in ("id", "type"):
                yield from short_string(tape)
            else:
                raise NotCall
            if name and arguments and not begun:
                begun = True
                self._call_held(name, arguments)
            yield from tape.space()
            closed = (yield from tape.expect(",", "}")) == "}"
        if not begun:
            self._call_held(name, "{}")
        tape.drop()

    def _held_arguments(self) -> Reading[str]:
        """Arguments that cannot go out yet: before the name, or as a string that says JSON. Returns an object's text."""
        if (yield from self.tape.peek()) == "{":
            return (yield from whole(self.tape))
        text = yield from whole(self.tape)
        said = object_in(f'{{"it": {text}}}') or {}
        if not isinstance(said.get("it"), str) or object_in(said["it"]) is None:
            raise NotCall
        return str(said["it"])

    def _call_held(self, name: str, arguments: str) -> None:
        self.begin(name)
        self.outlet.argue(arguments)

    def some_calls(self) -> Reading[None]:
        """A list of such objects, or one of them."""
        if (yield from self.tape.literal("[")):
            mark = ","
            while mark == ",":
                yield from self.tape.space()
                yield from self.one_call()
                yield from self.tape.space()
                mark = yield from self.tape.expect(",", "]")
            self.tape.drop()
        else:
            yield from self.one_call()


# --- dialects: each reads an answer to its end ------------------------------------------------------------------------


def hermes(source: Source) -> Reading[None]:
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes, Qwen 2.5, Qwen 3. An end mark left out is no harm."""
    tape = source.tape

    def call() -> Reading[None]:
        yield from tape.space()
        yield from source.one_call()
        yield from tape.space()
        yield from tape.closing("</tool_call>")
        tape.drop()

    while (yield from tape.until(("<tool_call>",), source.outlet.say)):
        yield from source.attempt(call)


def mistral(source: Source) -> Reading[None]:
    """`[TOOL_CALLS]` and a list of objects, or `name[ARGS]{...}` with a mark for each call, `[CALL_ID]...` between the two."""
    tape = source.tape

    def call() -> Reading[None]:
        yield from tape.space()
        if (yield from tape.peek()) in ("[", "{"):
            yield from source.some_calls()
            return
        name = yield from _word(tape, MOST_NAME)
        if tape.over:  # more of the name might have come
            raise NotCall
        source.named(name)
        if (yield from tape.literal("[CALL_ID]")):
            yield from _word(tape, MOST_NAME)
        yield from tape.literal("[ARGS]")
        yield from source.after_name(name)

    while (yield from tape.until(("[TOOL_CALLS]",), source.outlet.say)):
        yield from source.attempt(call)


def _word(tape: Tape, most: int) -> Reading[str]:
    word = ""
    while more := (yield from tape.run(_NAME, most - len(word))):
        word += more
    return word


def bare(source: Source, tag: str | None) -> Reading[None]:
    """An answer that is nothing but calls: a list of objects, or objects with `;` between them (Llama 3).

    `tag` may stand before them; behind it, they may also follow other text.
    """
    tape = source.tape

    def first() -> Reading[None]:
        yield from tape.space()
        if tag and (yield from tape.literal(tag)):
            yield from tape.space()
        yield from source.some_calls()

    def further() -> Reading[None]:
        yield from tape.space()
        yield from tape.expect(";")
        yield from tape.space()
        yield from source.one_call()

    def calls() -> Reading[None]:
        called = yield from source.attempt(first)
        while called:
            called = yield from source.attempt(further)

    yield from calls()
    while tag and (yield from tape.until((tag,), source.outlet.say)):
        yield from calls()
    if not tag:
        yield from rest(source)


def rest(source: Source) -> Reading[None]:
    """All that comes is said."""
    while text := (yield from source.tape.run(_ANY)):
        source.outlet.say(text)


_ANY = re.compile(r"(?s:.*)")


@dataclass(frozen=True, slots=True)
class Marks:
    """The marks around calls and their parts in a format that names the tool before its arguments."""

    section: str
    begin: str
    separator: str
    end: str
    close: str


DEEPSEEK = Marks(
    "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"
)
KIMI = Marks(
    "<|tool_calls_section_begin|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    "<|tool_calls_section_end|>",
)
_KIMI_NAME = re.compile(r"functions\.(.+):[0-9]+")


def marked(source: Source, marks: Marks) -> Reading[None]:
    """DeepSeek (`name SEPARATOR {...}`, or `function SEPARATOR name` and a fenced object) and Kimi (`functions.name:0`)."""
    tape = source.tape

    def call() -> Reading[None]:
        yield from tape.space()
        head = yield from _word(tape, MOST_NAME)
        if (yield from tape.literal(":")):  # Kimi's count
            head += ":" + (yield from _word(tape, MOST_NAME))
        yield from tape.space()
        yield from tape.expect(marks.separator)
        fenced = False
        if head == "function" and (yield from tape.peek()) != "{":
            head = yield from _word(tape, MOST_NAME)
            fenced = bool((yield from tape.literal("\n```json\n")))
        found = _KIMI_NAME.fullmatch(head)
        yield from source.after_name(found[1] if found else head)
        yield from tape.space()
        if fenced and (yield from tape.closing("```")):
            yield from tape.space()
        yield from tape.closing(marks.end)
        tape.drop()
        yield from tape.space()
        yield from tape.closing(marks.close)
        tape.drop()

    def section() -> Reading[None]:
        yield from tape.space()
        yield from tape.expect(marks.begin)
        yield from call()

    while mark := (yield from tape.until((marks.section, marks.begin), source.outlet.say)):
        yield from source.attempt(section if mark == marks.section else call)
