"""Chat templates: the messages of a conversation become one prompt, as `transformers` renders them. Knows no tokens.

A template is a program that came with a checkpoint. It runs in jinja2's immutable sandbox, in a process of its own with limits
that the kernel keeps: no check from inside can bound `'a' * 10**9`, a sort or a huge power, a CPU timer and a kill bound all.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import resource
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any, NoReturn

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from shardwise.engine.text import NAMED_TOKENS, read_json, read_special_tokens
from shardwise.errors import CheckpointError, RequestError
from shardwise.sched.checks import check_text

COMPILE_S = 2.0  # of CPU time, once
CPU_S = 0.25  # for one rendering
WALL_S = 10.0  # for one rendering on a machine so busy that its CPU time does not come
MEMORY_BYTES = 512 << 20  # of address space, 60 MiB of it the interpreter
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
_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
_RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", *NAMED_TOKENS)
_START = "import json, sys; sys.path += json.loads(sys.argv[1]); from shardwise.engine.template import serve; serve()"


class _Generation(Extension):
    """`{% generation %}` marks what the model wrote, for training; in a prompt it only groups."""

    tags = {"generation"}  # noqa: RUF012 - the type that jinja2 declares

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Namespace(Namespace):
    """As jinja2's, but no name may begin with an underscore (as in transformers)."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that `namespace(self=...)` works, as in jinja2
        for name in dict(*args[1:], **kwargs):
            _check_public(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


def _check_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}: names that begin with an underscore are private")


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> ImmutableSandboxedEnvironment:
    """The names, filters and settings that transformers gives to chat templates (utils/chat_template_utils.py, 5.x)."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    # Both keep constants from being worked out while compiling, so that a bomb in one goes off where it is bounded.
    environment.optimized, environment.finalize = False, jinja2.pass_context(lambda _context, value: value)
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": lambda format: datetime.now().strftime(format),
        "dict": lambda *args, **kwargs: dict(*args, **kwargs),
        "namespace": _Namespace,
    }
    return environment


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    return _environment().from_string(source)


def _rendered(source: str, variables: Mapping[str, Any], limit: int) -> tuple[str, str]:
    """What came of a rendering: `text`, or why there is none: `syntax`, `raised`, `failed`, and a message."""
    parts, size = [], 0
    try:
        for part in _compiled(source).generate(**variables):
            parts.append(part)
            size += len(part)
            if size > limit:
                return "failed", f"it makes more than {limit} characters of this input"
        return "text", "".join(parts)
    except jinja2.TemplateSyntaxError as error:
        return "syntax", f"line {error.lineno}: {error.message}"[:1000]
    except jinja2.TemplateError as error:
        return "raised" if type(error) is jinja2.TemplateError else "failed", str(error)[:1000]
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"[:1000]


def serve() -> None:
    """The rendering process: a JSON line in, a JSON line out, until the input ends. Over its CPU time, it is killed."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    for line in sys.stdin.buffer:
        source, variables, limit = json.loads(line)
        # SIGPROF is left to its default, the end of the process: it stops even one long operation in C.
        signal.setitimer(signal.ITIMER_PROF, COMPILE_S)
        with contextlib.suppress(Exception):  # which comes again below
            _compiled(source)
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        answer = json.dumps(_rendered(source, variables, limit))
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(answer.encode() + b"\n")
        sys.stdout.buffer.flush()


class _Isolated:
    """Renders in a process that is started at the first call, kept, and started anew after one that had to be killed."""

    def __init__(self) -> None:
        self._process: Popen[bytes] | None = None
        self._lock = threading.Lock()

    def started(self) -> Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "PATH", "TZ") if name in os.environ}  # no keys
            command = [sys.executable, "-I", "-c", _START, json.dumps([path for path in sys.path if path])]
            self._process = Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, cwd="/", env=kept)
            weakref.finalize(self, _end, self._process)
        return self._process

    def __call__(self, source: str, variables: Mapping[str, Any], limit: int) -> tuple[str, str]:
        with self._lock:
            process = self.started()
            assert process.stdin and process.stdout
            watch = threading.Timer(WALL_S, process.kill)
            watch.start()
            try:
                process.stdin.write(json.dumps([source, dict(variables), limit]).encode() + b"\n")
                process.stdin.flush()
                answer = process.stdout.readline()
            except OSError:
                answer = b""
            finally:
                watch.cancel()
            if answer.endswith(b"\n"):
                return tuple(json.loads(answer))
            _end(process)
            late = process.returncode == -signal.SIGPROF
            return "failed", f"it takes more than {CPU_S} s" if late else f"its process ended with code {process.returncode}"


def _end(process: Popen[bytes]) -> None:
    with contextlib.suppress(OSError), process:  # which closes the pipes, one of them perhaps with a request in it, and waits
        process.kill()


class ChatTemplate:
    """The chat template of a checkpoint. Made by `open_template`; safe to share between threads.

    `is_default`: the checkpoint has none, and ChatML, which its model need not know, is used instead.
    """

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str], *, isolated: bool = True) -> None:
        """`sources`: templates by name, `default` among them, or none for ChatML. `isolated`: as in `open_template`."""
        self.is_default = not sources
        self._sources = dict(sources) or {"default": CHATML}
        self._special = dict(special_tokens)
        self._isolated = _Isolated() if isolated and not self.is_default else None
        self._shapes: dict[tuple[str, str], bool] = {}

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
        text = self._text(source, {**self._special, **extra, **fixed})
        return _cut_final(text, final) if continue_final_message else text

    def _text(self, source: str, variables: Mapping[str, Any]) -> str:
        limit = SPARE_CHARS + GROWTH * len(json.dumps(variables))
        kind, text = (self._isolated or _rendered)(source, variables, limit)
        if kind == "text":
            return text
        if kind == "syntax":
            raise CheckpointError(f"the checkpoint's chat template is not valid: {text}")
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
            for call in message.get("tool_calls", ()):
                call = call.get("function", call)
                arguments = call["arguments"]
                if isinstance(arguments, str) and self._takes(source, "objects"):
                    call["arguments"] = json.loads(arguments)
                elif isinstance(arguments, dict) and not self._takes(source, "objects"):
                    call["arguments"] = json.dumps(arguments, ensure_ascii=False)

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
        words = set(re.findall(r"[A-Za-z]\w*", source)) - set(_RESERVED) - _environment().globals.keys()
        for name, value in variables.items():
            if name not in words and name not in KNOWN_VARIABLES:
                raise RequestError(
                    f"chat template variable {name!r} cannot be set; {', '.join(KNOWN_VARIABLES)} can, and others that this "
                    "model's template reads"
                )
            if isinstance(_checked(value, f"chat template variable {name!r}"), (list, dict)):
                raise RequestError(f"chat template variable {name!r} must be text, a number or a bool")
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
        raise RequestError(f"{name}.role is {plain.get('role')!r}; it must be one of {', '.join(ROLES)}")
    content, calls = plain.get("content"), plain.get("tool_calls", [])
    for n, part in enumerate(content if isinstance(content, list) else ()):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise RequestError(f'{name}.content[{n}] is not text; {{"type": "text", "text": "..."}} is wanted')
    if not isinstance(content, (str, list)) and (content is not None or not calls):
        shown = "missing" if content is None else f"a {type(content).__name__}"
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
    try:
        arguments = _checked(json.loads(arguments), name) if isinstance(arguments, str) else arguments
    except (json.JSONDecodeError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise RequestError(f"{name}: arguments must be an object, or the JSON text of one")


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
