"""The input of a response: items become the messages of a conversation. Knows nothing of tools, sampling or the answer."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from shardwise.errors import RequestError
from shardwise.sched.checks import shown
from shardwise.server.body import reworded
from shardwise.server.frames import new_id
from shardwise.server.responses.body import MOST_ITEMS
from shardwise.server.responses.writer import KEPT_THOUGHT

TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
"""Types of parts that hold text. A refusal does too, under another name."""

Item = dict[str, Any]
Parts = str | list[dict[str, Any]]


class MessageItem(msgspec.Struct, tag="message"):
    """What somebody said."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Parts


class CallItem(msgspec.Struct, tag="function_call"):
    """A function that the model called."""

    call_id: str
    name: str
    arguments: str = "{}"


class CallOutputItem(msgspec.Struct, tag="function_call_output"):
    """What the function gave."""

    call_id: str
    output: Parts


class CustomCallItem(msgspec.Struct, tag="custom_tool_call"):
    """A custom tool that the model called."""

    call_id: str
    name: str
    input: str = ""


class CustomCallOutputItem(msgspec.Struct, tag="custom_tool_call_output"):
    """What the custom tool gave."""

    call_id: str
    output: Parts


class ThoughtItem(msgspec.Struct, tag="reasoning"):
    """What the model thought: its content, else the summary, else what is in `encrypted_content`."""

    summary: list[dict[str, Any]] | None = None
    content: list[dict[str, Any]] | None = None
    encrypted_content: str | None = None


AnyItem = MessageItem | CallItem | CallOutputItem | CustomCallItem | CustomCallOutputItem | ThoughtItem
KINDS = ("message", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output", "reasoning")


def read_items(given: str | Sequence[Item] | None, find: Callable[[str], Item | None]) -> list[Item]:
    """The items of an `input`, each with a type and an id. `find` looks up what an item_reference names; RequestError where it
    finds nothing, or an item is of no known kind."""
    if given is None or isinstance(given, str):
        content = [{"type": "input_text", "text": given or ""}]
        return [{"id": new_id("msg_"), "type": "message", "role": "user", "content": content}]
    found = []
    for n, item in enumerate(given):
        kind = item.get("type") or ("message" if "role" in item else "item_reference" if "id" in item else None)
        if kind == "item_reference":
            name = item.get("id")
            known = find(name) if isinstance(name, str) else None
            if known is None:
                raise RequestError(f"input[{n}] refers to item {shown(name)}, which is not kept here; send the item itself")
            found.append(known)
        elif kind in KINDS:
            id = item.get("id")
            named = {} if isinstance(id, str) and id else {"id": new_id("msg_" if kind == "message" else "item_")}
            found.append({**item, "type": kind, **named})
        else:
            works = ", ".join((*KINDS, "item_reference"))
            raise RequestError(f"input[{n}].type is {shown(kind)}; items of these types are taken: {works}")
    return found


def conversation(items: Sequence[Mapping[str, Any]], instructions: str | None, *, first: int = 0) -> list[dict[str, Any]]:
    """The messages that items make, in the form of the chat API. Items are called by their place in `input`, where `first` is
    the place of the first that is not of an earlier response. RequestError for what is no such item.

    What the model did in one go is one message: its reasoning, its text, its calls. `instructions` and the system messages
    that the conversation begins with are one, since many chat templates take a system message only there.
    """
    if len(items) > MOST_ITEMS:
        raise RequestError(
            f"the conversation has {len(items)} items, those of the responses before it included; {MOST_ITEMS} fit"
        )
    told = _Told()
    for n, item in enumerate(items):
        place = f"input[{n - first}]" if n >= first else "an item of the previous response"
        try:
            read = msgspec.convert(item, AnyItem)
        except msgspec.ValidationError as error:
            raise RequestError(f"{place}.{reworded(str(error), item, AnyItem)}") from None
        told.add(read, place)
    leading = [instructions] if instructions else []
    while told.messages and told.messages[0]["role"] in ("system", "developer"):
        leading.append(told.messages.pop(0)["content"])
    system = [{"role": "system", "content": "\n\n".join(leading)}] if leading else []
    # A conversation has something to answer: where nobody said anything, that is an empty message.
    return system + (told.messages or [{"role": "user", "content": ""}])


class _Told:
    """Messages so far; the last is still open for the model's next item where it is the model's."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def add(self, item: AnyItem, place: str) -> None:
        match item:
            case MessageItem("assistant", content):
                self._own("content", "tool_calls")["content"] = parts_text(content, f"{place}.content")
            case MessageItem(role, content):
                self.messages.append({"role": role, "content": parts_text(content, f"{place}.content")})
            case CallItem(id, name, arguments):
                self._call(id, name, arguments or "{}")
            case CustomCallItem(id, name, text):
                self._call(id, name, msgspec.json.encode({"input": text}).decode())
            case CallOutputItem(id, output) | CustomCallOutputItem(id, output):
                self.messages.append({"role": "tool", "tool_call_id": id, "content": parts_text(output, f"{place}.output")})
            case ThoughtItem():
                if thought := _thought(item, place):
                    self._own("reasoning_content", "content", "tool_calls")["reasoning_content"] = thought

    def _call(self, id: str, name: str, arguments: str) -> None:
        function = {"name": name, "arguments": arguments}
        self._own().setdefault("tool_calls", []).append({"id": id, "type": "function", "function": function})

    def _own(self, *without: str) -> dict[str, Any]:
        """The model's message that goes on: the last, or a new one where that has any of `without` already."""
        last = self.messages[-1] if self.messages else {}
        if last.get("role") != "assistant" or any(key in last for key in without):
            last = {"role": "assistant"}
            self.messages.append(last)
        return last


def parts_text(content: Parts, place: str) -> str:
    """The text of parts, without anything between them. RequestError for an image, sound or a file: no URL is ever fetched."""
    if isinstance(content, str):
        return content
    texts = []
    for n, part in enumerate(content):
        kind = part.get("type")
        text = part.get("refusal") if kind == "refusal" else part.get("text") if kind in TEXTS else None
        if kind != "refusal" and kind not in TEXTS:
            raise RequestError(
                f"{place}[{n}].type is {shown(kind)}; this is a text model, which takes input_text and output_text"
            )
        if not isinstance(text, str):
            raise RequestError(f"{place}[{n}].{'refusal' if kind == 'refusal' else 'text'} is {shown(text)}; it takes text")
        texts.append(text)
    return "".join(texts)


def _thought(item: ThoughtItem, place: str) -> str:
    if item.content:
        return parts_text(item.content, f"{place}.content")
    if item.encrypted_content and item.encrypted_content.startswith(KEPT_THOUGHT):
        try:
            return base64.b64decode(item.encrypted_content.removeprefix(KEPT_THOUGHT), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError, ValueError):
            raise RequestError(f"{place}.encrypted_content is damaged; send it as it came, or leave the item out") from None
    return parts_text(item.summary or [], f"{place}.summary")
