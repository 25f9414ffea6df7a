"""The body of a request for a response becomes a turn to be talked, and the response as it is before anything was said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from shardwise.errors import RequestError
from shardwise.sched.checks import shown
from shardwise.sched.request import SamplingParams
from shardwise.sched.structured import StructuredOutputs
from shardwise.server.answer.tools import responses_offer
from shardwise.server.conversation import variables_of
from shardwise.server.fits import renamed
from shardwise.server.frames import new_id, now
from shardwise.server.refusal import Refusal
from shardwise.server.responses.body import ResponsesBody, TextConfig
from shardwise.server.responses.items import Item, conversation, read_items
from shardwise.server.responses.output import Response
from shardwise.server.responses.writer import Origin
from shardwise.server.sampling import given, sampling
from shardwise.server.service import Service
from shardwise.server.turn import Turn

LIMIT = "max_output_tokens"
LOGPROBS = "message.output_text.logprobs"
SEALED = "reasoning.encrypted_content"
SERVED_ELSEWHERE = (
    "web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11", "file_search",
    "code_interpreter", "image_generation", "mcp", "computer", "computer_use_preview", "local_shell", "shell", "apply_patch",
    "tool_search", "programmatic_tool_calling",
)  # fmt: skip
"""Tools that OpenAI's servers run, or whose calls have items of their own. Left out and named in a header, not refused: the
Codex client always offers some, and does without (as in llama.cpp, pull request 23041)."""
AS_ASKED = (
    "instructions", "max_output_tokens", "max_tool_calls", "previous_response_id", "prompt_cache_key", "safety_identifier",
    "user", "metadata", "top_logprobs", "parallel_tool_calls", "background", "tool_choice",
)  # fmt: skip
"""Fields that a response gives back as they were asked for, where they were."""
CUSTOM_INPUT = {
    "type": "object",
    "properties": {"input": {"type": "string", "description": "The whole input of the tool, as text."}},
    "required": ["input"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request comes to. `items` are all that it is made from, `given` of them its own; `ignored` are types of tools."""

    turn: Turn
    response: Response
    items: Sequence[Item]
    given: int
    origins: Mapping[str, Origin]
    ignored: Sequence[str]
    top: int | None
    sealed: bool


def ask(
    service: Service, body: ResponsesBody, earlier: Sequence[Item], find: Callable[[str], Item | None], *, keep: bool
) -> Asked:
    """`earlier` are the items of the response that this one goes on from. RequestError, Refusal for what cannot be done."""
    model = service.model(body.model)
    for name, instead in (("conversation", "send previous_response_id, or the items"), ("prompt", "send the text as input")):
        if getattr(body, name) is not None:
            raise RequestError(f"{name} is not served here: nothing of that kind is kept; {instead}")
    tools, origins, ignored = _tools(body.tools or ())
    offer = responses_offer(tools or None, _choice(body.tool_choice, origins), body.parallel_tool_calls)
    own = read_items(body.input, find)
    items = [*earlier, *own]
    top = (body.top_logprobs or 0) if body.top_logprobs or LOGPROBS in (body.include or ()) else None
    params = _params(service, body, top)
    turn = Turn(
        messages=conversation(items, body.instructions, first=len(earlier)),
        params=params,
        tools=offer.tools,
        tool_choice=offer.choice,
        parallel=offer.parallel,
        variables=variables_of(body.chat_template_kwargs, body.reasoning.effort if body.reasoning else None),
        priority=body.priority,
        salt=body.cache_salt or "",
        source="input",
        limit=LIMIT,
    )
    response = Response(
        id=new_id("resp_"),
        created_at=now(),
        model=model,
        reasoning={"effort": body.reasoning and body.reasoning.effort, "summary": body.reasoning and body.reasoning.summary},
        text=_text(body.text),
        tools=_shown(body.tools or (), ignored),
        store=keep,
        temperature=params.temperature,
        top_p=params.top_p,
        **{name: value for name in AS_ASKED if (value := getattr(body, name)) is not None},
    )
    return Asked(turn, response, items, len(own), origins, ignored, top, SEALED in (body.include or ()))


def check_kept(service: Service, body: ResponsesBody) -> bool:
    """Whether the response is to be kept. Refusal for what needs that where nothing is."""
    keep = service.settings.stores and body.store is not False
    if body.background and not keep:
        why = "nothing is kept by this server" if not service.settings.stores else 'it was asked for with "store": false'
        raise Refusal(400, f"a background response has to be kept until its client asks for it, and {why}", param="background")
    return keep


def check_stores(service: Service) -> None:
    """Refusal where nothing is kept at all."""
    if not service.settings.stores:
        raise Refusal(
            404,
            "responses are not kept by this server: it was started with --no-response-store, or with several --api-workers, "
            "which do not share them; send the whole conversation each time",
            code="responses_not_stored",
        )


def _params(service: Service, body: ResponsesBody, top: int | None) -> SamplingParams:
    values = given(body)
    form = body.text.format if body.text else None
    if form is not None and form.type == "json_object":
        values["structured_outputs"] = StructuredOutputs(json_object=True, name="text.format")
    elif form is not None and form.type == "json_schema":
        if form.schema is msgspec.UNSET:
            raise RequestError("text.format.schema is missing; with the type json_schema it is the schema of the answer")
        values["structured_outputs"] = StructuredOutputs(json=form.schema, name="text.format.schema")
    if top is not None:
        values["logprobs"] = top
    with renamed(max_tokens=LIMIT):
        return sampling(service, values, max_tokens=body.max_output_tokens)


def _text(text: TextConfig | None) -> dict[str, Any]:
    form = {"type": "text"} if text is None or text.format is None else msgspec.to_builtins(text.format)
    shape = {name: value for name, value in form.items() if value is not None}
    return {"format": shape, "verbosity": (text and text.verbosity) or "medium"}


# --- tools ------------------------------------------------------------------------------------------------------------


def _tools(given: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Origin], list[str]]:
    """Tools as functions, what they were by the names of these, and the types that are left out."""
    tools: list[dict[str, Any]] = []
    origins: dict[str, Origin] = {}
    ignored: list[str] = []
    for n, tool in enumerate(given):
        kind = tool.get("type")
        if kind in SERVED_ELSEWHERE:
            ignored.append(str(kind))
        elif kind == "namespace":
            name, inner = tool.get("name"), tool.get("tools")
            if not isinstance(name, str) or not isinstance(inner, list):
                raise RequestError(f"tools[{n}] is a namespace, which takes a name and a list of tools")
            for each in inner:
                _add(each, f"tools[{n}].tools", name, tools, origins)
        else:
            _add(tool, f"tools[{n}]", None, tools, origins)
    return tools, origins, list(dict.fromkeys(ignored))


def _add(tool: object, place: str, namespace: str | None, tools: list[dict[str, Any]], origins: dict[str, Origin]) -> None:
    """One tool of type function or custom, under its own name, or one that tells of its namespace."""
    if not isinstance(tool, Mapping) or tool.get("type") not in ("function", "custom"):
        kind = tool.get("type") if isinstance(tool, Mapping) else tool
        raise RequestError(
            f"{place} is of type {shown(kind)}; tools of the types function and custom, which have a name, are called by the "
            "model, and none are run by this server"
        )
    if not isinstance(tool.get("name"), str):
        raise RequestError(f"{place}.name is {shown(tool.get('name'))}; it takes the name that the model calls the tool by")
    custom, own = tool["type"] == "custom", tool["name"]
    name = own if namespace is None else f"{namespace}__{own}"
    origins[name] = Origin(own, custom, namespace)
    described = {
        "description": f"{tool.get('description') or ''}{_syntax(tool.get('format'))}".strip(),
        "parameters": CUSTOM_INPUT,
    }
    tools.append({**tool, **(described if custom else {}), "type": "function", "name": name})


def _syntax(form: object) -> str:
    """The grammar of a custom tool's input, as it is told to the model; it is not held to it."""
    if not isinstance(form, Mapping) or not isinstance(form.get("definition"), str):
        return ""
    return f"\nThe input follows this {form.get('syntax')} grammar:\n{form['definition']}"


def _choice(choice: object, origins: Mapping[str, Origin]) -> object:
    """The choice with tools called by the names that the model knows."""
    if not isinstance(choice, Mapping):
        return choice
    if choice.get("type") == "allowed_tools" and isinstance(choice.get("tools"), list):
        return {**choice, "tools": [_choice(each, origins) for each in choice["tools"]]}
    if choice.get("type") in SERVED_ELSEWHERE:
        raise RequestError(f"tool_choice asks for {shown(choice.get('type'))}, which this server does not run; name a function")
    if choice.get("type") == "custom":
        return {**choice, "type": "function"}
    return choice


def _shown(given: Sequence[Mapping[str, Any]], ignored: Sequence[str]) -> list[dict[str, Any]]:
    """The tools as a response tells of them, with the fields that clients expect."""
    shown_fields = {"description": None, "parameters": None, "strict": False}
    return [
        {**shown_fields, **tool} if tool.get("type") == "function" else dict(tool)
        for tool in given
        if tool.get("type") not in ignored
    ]
