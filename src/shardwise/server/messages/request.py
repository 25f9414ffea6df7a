"""The body of a request for a message becomes a turn to be talked: its blocks are messages in the form of the chat API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shardwise.errors import RequestError
from shardwise.sched.checks import shown
from shardwise.sched.request import SamplingParams
from shardwise.sched.structured import StructuredOutputs
from shardwise.server.answer.tools import anthropic_offer
from shardwise.server.conversation import variables_of
from shardwise.server.fits import renamed
from shardwise.server.messages.body import Blocks, CountBody, InputMessage, MessagesBody
from shardwise.server.sampling import given, sampling
from shardwise.server.service import Service
from shardwise.server.turn import Turn


def ask(service: Service, body: CountBody) -> Turn:
    """RequestError for what cannot be done. A body that is only counted is asked for one token."""
    if body.mcp_servers:
        raise RequestError(
            "mcp_servers is not served here: this server calls no others; offer their tools as tools of your own"
        )
    if body.container is not None:
        raise RequestError("container is not served here: this server runs no code; leave it out")
    offer = anthropic_offer(body.tools or None, body.tool_choice)
    return Turn(
        messages=conversation(body.messages, body.system),
        params=_params(service, body),
        tools=offer.tools,
        tool_choice=offer.choice,
        parallel=offer.parallel,
        # Where the request says nothing of thinking, the model does as it is used to.
        variables=variables_of(
            None,
            effort=body.output_config.effort if body.output_config else None,
            thinking=body.thinking.type if body.thinking else None,
        ),
        continue_final_message=body.messages[-1].role == "assistant",
        fit=True,
        budget=body.thinking.budget_tokens if body.thinking and body.thinking.type == "enabled" else None,
        lenient=True,
    )


def _params(service: Service, body: CountBody) -> SamplingParams:
    values = given(body)
    if body.output_config is not None and body.output_config.format is not None:
        schema = body.output_config.format.schema
        values["structured_outputs"] = StructuredOutputs(json=schema, name="output_config.format.schema")
    if isinstance(body, MessagesBody):
        values["stop"] = body.stop_sequences or []
    with renamed(stop="stop_sequences"):
        return sampling(service, values, max_tokens=1)


# --- messages ---------------------------------------------------------------------------------------------------------


def conversation(given: Sequence[InputMessage], system: str | Blocks | None) -> list[dict[str, Any]]:
    """The messages of the chat API. RequestError, with the place, for a block that a text model cannot take.

    `system` and the system messages that the conversation begins with are one.
    """
    leading = [] if not system else [_system(system, "system")]
    messages: list[dict[str, Any]] = []
    for n, message in enumerate(given):
        content, place = message.content, f"messages[{n}].content"
        if message.role == "system":
            text = _system(content, place)
            if messages:
                messages.append({"role": "system", "content": text})
            else:
                leading.append(text)
        elif isinstance(content, str):
            messages.append({"role": message.role, "content": content})
        elif message.role == "user":
            messages += _user(content, place)
        else:
            messages.append(_assistant(content, place))
    return ([{"role": "system", "content": "\n\n".join(leading)}] if leading else []) + messages


def _system(content: str | Blocks, place: str) -> str:
    return (
        content if isinstance(content, str) else "\n\n".join(_text(block, f"{place}[{n}]") for n, block in enumerate(content))
    )


def _user(blocks: Blocks, place: str) -> list[dict[str, Any]]:
    """A message for each result of a tool, and one for the texts between them."""
    messages: list[dict[str, Any]] = []
    for n, block in enumerate(blocks):
        where = f"{place}[{n}]"
        if block.get("type") == "tool_result":
            id = _string(block, "tool_use_id", where)
            content = block.get("content") or ""
            if not isinstance(content, str | list):
                raise RequestError(f"{where}.content is {shown(content)}; it takes text, or a list of text blocks")
            text = content if isinstance(content, str) else _joined(content, f"{where}.content")
            messages.append({"role": "tool", "tool_call_id": id, "content": text})
        elif block.get("type") == "tool_use":
            raise RequestError(f"{where} is a tool_use, which only the assistant makes; its results are tool_result blocks")
        else:
            text = _text(block, where)
            if messages and messages[-1]["role"] == "user":
                messages[-1]["content"] += "\n\n" + text
            else:
                messages.append({"role": "user", "content": text})
    return messages or [{"role": "user", "content": ""}]


def _assistant(blocks: Blocks, place: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant"}
    for n, block in enumerate(blocks):
        where, kind = f"{place}[{n}]", block.get("type")
        if kind == "thinking":
            message["reasoning_content"] = message.get("reasoning_content", "") + _string(block, "thinking", where)
        elif kind == "tool_use":
            arguments = block.get("input", {})
            if not isinstance(arguments, dict):
                raise RequestError(f"{where}.input is {shown(arguments)}; it takes an object")
            function = {"name": _string(block, "name", where), "arguments": arguments}
            call = {"id": _string(block, "id", where), "type": "function", "function": function}
            message.setdefault("tool_calls", []).append(call)
        elif kind != "redacted_thinking":  # which says nothing that could be read
            message["content"] = message.get("content", "") + _text(block, where)
    if "content" not in message and "tool_calls" not in message:
        message["content"] = ""
    return message


def _joined(blocks: Sequence[Any], place: str) -> str:
    return "\n\n".join(_text(block, f"{place}[{n}]") for n, block in enumerate(blocks))


def _text(block: object, place: str) -> str:
    """The text of a text block. Nothing else is read: no image, no document, no URL."""
    if not isinstance(block, dict):
        raise RequestError(f'{place} is {shown(block)}; {{"type": "text", "text": "..."}} is wanted')
    if block.get("type") != "text":
        raise RequestError(
            f"{place}.type is {shown(block.get('type'))}; this is a text model: text, tool_use, tool_result and thinking "
            "blocks are taken, each in its place"
        )
    return _string(block, "text", place)


def _string(block: dict[str, Any], name: str, place: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise RequestError(
            f"{place}.{name} is {shown(value)}; it takes text" if name in block else f"{place}.{name} is missing"
        )
    return value
