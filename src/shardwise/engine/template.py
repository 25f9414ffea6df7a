"""Chat templates: the messages of a conversation become one prompt, as `transformers` renders them. Knows no tokens.

A template is a program that came with a checkpoint; `template_process` runs it where it can do no harm.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shardwise.engine.template_process import Isolated, environment, rendered
from shardwise.engine.text import NAMED_TOKENS, read_json, read_special_tokens
from shardwise.errors import CheckpointError, RequestError
from shardwise.sched.checks import check_text

SPARE_CHARS = 1 << 20  # a prompt may have so many characters, and
GROWTH = 8  # eight times its input's
INPUT_DEPTH = 64
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
# What a request may set besides its messages. Whatever else the template of the model names is open to it too.
KNOWN_VARIABLES = ("enable_thinking", "thinking", "reasoning_effort")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + (message.content or '') + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_REASONING = ("reasoning_content", "thinking", "reasoning")  # one thing under three names, the first the usual one
_EMPTY: tuple[dict[str, Any], ...] = ({}, {"content": None}, {"content": ""})
"""How a message that says nothing beside its calls may look: as transformers has it, as OpenAI has it, and as text."""
_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
_RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", *NAMED_TOKENS)


class ChatTemplate:
    """The chat template of a checkpoint. Made by `open_template`; safe to share between threads.

    `is_default`: the checkpoint has none, and ChatML, which its model need not know, is used instead.
    """

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str], *, isolated: bool = True) -> None:
        """`sources`: templates by name, `default` among them, or none for ChatML. `isolated`: as in `open_template`."""
        self.is_default = not sources
        self._sources = dict(sources) or {"default": CHATML}
        self._special = dict(special_tokens)
        self._isolated = Isolated() if isolated and not self.is_default else None
        self._shapes: dict[tuple[str, str], bool] = {}
        self._silent: dict[str, tuple[dict[str, Any], bool]] = {}

    def start(self) -> None:
        """Start what renders, so that the first conversation need not wait for it (0.1 s)."""
        self._text(CHATML, {"messages": []})

    def source(self, *, tools: bool) -> str:
        """The text of the template that conversations with or without tools are rendered by."""
        return self._sources["tool_use" if tools and "tool_use" in self._sources else "default"]

    def other(self, source: str) -> ChatTemplate:
        """Another template for the same model: a stranger's, so it runs isolated, in the process of this one if it has one."""
        check_text(source, "chat_template")
        made = ChatTemplate({"default": source}, self._special)
        made._isolated = self._isolated or made._isolated
        return made

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The prompt for a conversation; special tokens are in it, so encode it with `add_special_tokens=False`.

        `add_generation_prompt`: end with the head of the model's answer; by default, unless `continue_final_message`, which
        leaves the last message open for the model to go on with. `variables`: scalars for the template, such as
        `enable_thinking`. `documents` are objects that templates for retrieval show. Raises RequestError, with the template's
        own message if it has one.
        """
        source = self.source(tools=tools is not None)
        chat = [_checked_message(message, f"messages[{n}]") for n, message in enumerate(_checked_list(messages, "messages"))]
        if not chat:
            raise RequestError("messages is empty; a conversation has at least one message")
        if tools is not None:
            tools = [_checked_object(tool, f"tools[{n}]") for n, tool in enumerate(_checked_list(tools, "tools"))]
        if documents is not None:
            documents = [
                _checked_object(each, f"documents[{n}]") for n, each in enumerate(_checked_list(documents, "documents"))
            ]
        generate = not continue_final_message if add_generation_prompt is None else add_generation_prompt
        if generate and continue_final_message:
            raise RequestError("add_generation_prompt and continue_final_message exclude each other; set one")
        self._fit(source, chat)
        final = _mark_final(chat) if continue_final_message else ""
        extra = self._checked_variables(source, variables or {})
        fixed = {"messages": chat, "tools": tools, "documents": documents, "add_generation_prompt": generate}
        try:
            text = self._text(source, {**self._special, **extra, **fixed})
        except RequestError as error:
            if place := _cut_call(chat):
                raise RequestError(f"{place}: its arguments are not the JSON of an object, and {error}") from None
            raise
        return _cut_final(text, final) if continue_final_message else text

    def _text(self, source: str, variables: Mapping[str, Any]) -> str:
        limit = SPARE_CHARS + GROWTH * len(json.dumps(variables))
        kind, text = (self._isolated or rendered)(source, variables, limit)
        if kind == "text":
            return text
        if kind == "syntax":
            raise CheckpointError(f"the chat template is not valid: {text}")
        verb = "refuses" if kind == "raised" else "fails on"
        raise RequestError(f"the chat template {verb} this conversation: {text}")

    def _fit(self, source: str, chat: list[dict[str, Any]]) -> None:
        """Give contents and call arguments the shape that the template takes: lists or text, objects or JSON text. Where it
        does not know OpenAI's newer name of the system's role, it gets the older."""
        for message in chat:
            if message["role"] == "developer" and "developer" not in source:
                message["role"] = "system"
            content = message.get("content")
            if isinstance(content, list) and not self._takes(source, "parts"):
                message["content"] = "\n".join(part["text"] for part in content)
            if not (calls := message.get("tool_calls", ())):
                continue
            if content is None:
                empty, objects = self._says_nothing(source)
                message |= empty
            else:
                objects = self._takes(source, "objects")
            for call in calls:
                call = call.get("function", call)
                arguments = call["arguments"]
                if isinstance(arguments, str) and objects:
                    found = _object_of(arguments)
                    call["arguments"] = arguments if found is None else found
                elif isinstance(arguments, dict) and not objects:
                    call["arguments"] = json.dumps(arguments, ensure_ascii=False)

    def _says_nothing(self, source: str) -> tuple[dict[str, Any], bool]:
        """What a message that only calls has for its content, and whether its arguments are objects.

        As transformers does it (5.23: no content at all) where the template shows the call so; else null, which templates such
        as DeepSeek-R1-Distill's ask for, or no text. transformers fails on those, though clients of OpenAI's API send null.
        """
        if source not in self._silent:
            ways = [(empty, objects) for empty in _EMPTY for objects in (True, False)]
            self._silent[source] = max(ways, key=lambda way: self._shows(source, *way))  # the first of equal ones
        return self._silent[source]

    def _shows(self, source: str, empty: Mapping[str, Any], objects: bool) -> int:
        """How the template takes a call beside `empty` content: 2 if it shows the arguments as they are, 1 if it renders."""
        arguments: Any = {"probe-text": 1} if objects else '{"probe-text": 1}'
        call = {"id": "callprobe", "type": "function", "function": {"name": "f", "arguments": arguments}}
        chat = [{"role": "user", "content": "question"}, {"role": "assistant", **empty, "tool_calls": [call]}]
        try:
            text = self._text(source, {**self._special, "messages": chat, "add_generation_prompt": False})
        except RequestError:
            return 0
        printed = "'probe-text'" in text or '\\"probe-text' in text or "None" in text
        return 2 if "probe-text" in text and not printed else int(not printed)

    def _takes(self, source: str, shape: str) -> bool:
        """Whether the template renders content `parts`, or argument `objects`, as what they say: found by trying once."""
        if (source, shape) not in self._shapes:
            content: Any = [{"type": "text", "text": "probe-text"}] if shape == "parts" else "question"
            chat: list[dict[str, Any]] = [{"role": "user", "content": content}]
            if shape == "objects":
                call = {"id": "callprobe", "type": "function", "function": {"name": "f", "arguments": {"probe-text": 1}}}
                chat.append({"role": "assistant", "content": "", "tool_calls": [call]})
            try:
                text = self._text(source, {**self._special, "messages": chat, "add_generation_prompt": False})
            except RequestError:
                text = ""
            printed = "'type'" in text or "'probe-text'" in text  # a Python object shown as it is
            self._shapes[source, shape] = not printed and ("probe-text" in text or (shape == "objects" and text != ""))
        return self._shapes[source, shape]

    def _checked_variables(self, source: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        if not variables:
            return {}
        words = set(re.findall(r"[A-Za-z]\w*", source)) - set(_RESERVED) - environment().globals.keys()
        for name, value in variables.items():
            if name not in words and name not in KNOWN_VARIABLES:
                raise RequestError(
                    f"chat_template_kwargs: {name!r} cannot be set; {', '.join(KNOWN_VARIABLES)} can, and others that this "
                    "model's template reads"
                )
            if isinstance(_checked(value, f"chat_template_kwargs.{name}"), (list, dict)):
                raise RequestError(f"chat_template_kwargs.{name} must be text, a number, true or false")
        return dict(variables)


def _checked_list(value: object, name: str) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise RequestError(f"{name} must be a list, not {type(value).__name__}")
    return list(value)


def _checked_object(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise RequestError(f"{name} must be an object, not {type(value).__name__}")
    return dict(_checked(value, name))


def _checked(value: object, name: str, depth: int = 0) -> Any:
    """A copy of `value` in plain JSON types. Raises RequestError for anything else in it."""
    if depth > INPUT_DEPTH:
        raise RequestError(f"{name} is nested more than {INPUT_DEPTH} deep")
    if isinstance(value, str):
        check_text(value, name)
        return str(value)
    if isinstance(value, Mapping):
        for key in value:
            check_text(key, f"a key of {name}")
        return {str(key): _checked(item, f"{name}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_checked(item, f"{name}[{n}]", depth + 1) for n, item in enumerate(value)]
    if value is None or type(value) in (bool, int, float):
        return value
    raise RequestError(f"{name} is a {type(value).__name__}; only what JSON can hold is taken")


def _checked_message(message: object, name: str) -> dict[str, Any]:
    """A plain copy of one message without its empty fields. Raises RequestError, with the place of what is wrong."""
    plain = {key: value for key, value in _checked_object(message, name).items() if value is not None}
    if plain.get("role") not in ROLES:
        told = repr(plain["role"]) if "role" in plain else "missing"
        raise RequestError(f"{name}.role is {told}; it must be one of {', '.join(ROLES)}")
    if plain["role"] == "assistant" and not plain.get("tool_calls"):
        plain.setdefault("content", "")  # an answer that was cut in its reasoning has none, and is sent back so
    content, calls = plain.get("content"), plain.get("tool_calls", [])
    for n, part in enumerate(content if isinstance(content, list) else ()):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise RequestError(f'{name}.content[{n}] is not text; {{"type": "text", "text": "..."}} is wanted')
    if not isinstance(content, (str, list)) and (content is not None or not calls):
        shown = "missing" if content is None else "an object" if isinstance(content, dict) else "a number, true or false"
        raise RequestError(f"{name}.content is {shown}; text, or a list of text parts, is wanted")
    for n, call in enumerate(_checked_list(calls, f"{name}.tool_calls")):
        _check_call(call, f"{name}.tool_calls[{n}]")
    reasoning = next((plain[key] for key in _REASONING if key in plain), None)
    # As transformers: the usual name, and `thinking`, which gpt-oss reads, whichever name it came under.
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _check_call(call: object, name: str) -> None:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RequestError(f'{name} is not a function call; {{"function": {{"name": "...", "arguments": ...}}}} is wanted')
    arguments = function.setdefault("arguments", {})
    if arguments in ("", None):  # as some clients have it of a call without any; templates get an object
        function["arguments"] = {}
    elif isinstance(arguments, str):
        return  # the JSON of an object, or as it is: an answer that was cut within a call is sent back so
    elif not isinstance(arguments, dict):
        raise RequestError(f"{name}: arguments must be an object, or text: the JSON of one")


def _object_of(text: str) -> dict[str, Any] | None:
    """The object that the arguments of a call are the JSON of; None where they are not, or it cannot be had: half a character,
    too many digits or levels."""
    try:
        found = _checked(json.loads(text), "arguments")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _cut_call(chat: Sequence[Mapping[str, Any]]) -> str | None:
    """The place of the first call whose arguments are not the JSON of an object."""
    for n, message in enumerate(chat):
        for m, call in enumerate(message.get("tool_calls", ())):
            arguments = call.get("function", call)["arguments"]
            if isinstance(arguments, str) and _object_of(arguments) is None:
                return f"messages[{n}].tool_calls[{m}]"
    return None


def _mark_final(chat: list[dict[str, Any]]) -> str:
    """Mark the end of the last message's text, so that the prompt can be cut there; returns the text."""
    holder, key = chat[-1], "content"
    if isinstance(holder.get("content"), list) and holder["content"]:
        holder, key = holder["content"][-1], "text"
    final = holder.get(key)
    if not isinstance(final, str):
        raise RequestError("continue_final_message: the last message has no text to go on with")
    holder[key] = final + _TAG
    return final


def _cut_final(text: str, final: str) -> str:
    """`text` up to the mark in it, as transformers does it: a message that the template trims stays trimmed."""
    at = text.rfind(_TAG.strip())
    if at < 0 or final.strip() not in text:
        raise RequestError("continue_final_message: the chat template does not show the last message as it is")
    return text[:at] if text.startswith(_TAG, at) else text[:at].rstrip()


def open_template(folder: Path, *, isolated: bool = True) -> ChatTemplate:
    """The chat template of a checkpoint folder: chat_template.jinja, else `chat_template` in tokenizer_config.json.

    `isolated=False` renders in this process, without limits of time and memory: for templates that are trusted.
    Raises CheckpointError for files that cannot be read. A template's syntax is checked where it runs, at its first use.
    """
    config = read_json(folder / "tokenizer_config.json").get("chat_template")
    sources: dict[str, Any] = {}
    if isinstance(config, str):
        sources["default"] = config
    elif isinstance(config, list):
        sources |= {entry["name"]: entry["template"] for entry in config if isinstance(entry, dict) and "name" in entry}
    try:
        for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
            sources[path.stem] = path.read_text(encoding="utf-8")
        if (path := folder / "chat_template.jinja").is_file():
            sources["default"] = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); download it again") from error
    if sources and not isinstance(sources.get("default"), str):
        raise CheckpointError(f"{folder} has the chat templates {', '.join(sources)}, but none is named 'default'")
    return ChatTemplate(sources, read_special_tokens(folder), isolated=isolated)
