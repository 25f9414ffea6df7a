"""What people give as prompts: text, token ids, vLLM's dicts of these, conversations, one or many; as `Prompt`s.

Everything of the wrong type is refused by its place in the list, before anything runs.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from shardwise.engine.complete import Prompt
from shardwise.engine.text import Tokenizer
from shardwise.errors import RequestError
from shardwise.sched.checks import check_text, flag, shown, whole
from shardwise.sched.request import MOST

if TYPE_CHECKING:
    from shardwise.engine.template import ChatTemplate  # which brings jinja2, and plain prompts need none

DEFAULT_TEMPLATE_END = "<|im_end|>"
"""What ends an answer of a model that has no template: ChatML is used, and its end may be no end token of the model."""


class TextPrompt(TypedDict, total=False):
    """A prompt as text. `cache_salt` keeps its cache apart from that of prompts with another one."""

    prompt: str
    cache_salt: str


class TokensPrompt(TypedDict, total=False):
    """A prompt as token ids, nothing added to them. `prompt` is the text that they were made of, if it is known."""

    prompt_token_ids: Sequence[int]
    prompt: str
    cache_salt: str


PromptType = str | TextPrompt | TokensPrompt | Sequence[int]
Message = Mapping[str, Any]
KEYS = ("prompt", "prompt_token_ids", "cache_salt")
WANTED = 'text, a list of token ids, or a dict with "prompt" or "prompt_token_ids"'


def listed(given: object) -> list[object]:
    """One prompt or several as a list of prompts. RequestError where there is none."""
    if isinstance(given, str | Mapping):
        return [given]
    many = _plain(given)
    if not isinstance(many, list | tuple):
        raise RequestError(f"prompts is {shown(given)}; it takes {WANTED}, or a list of these")
    if not many:
        raise RequestError("prompts is empty; give at least one")
    # A list of numbers is one prompt.
    return [many] if isinstance(many[0], int) or type(many[0]).__module__ == "numpy" else list(many)


def conversations(messages: object) -> list[object]:
    """One conversation or several as a list of conversations. RequestError where there is none."""
    if not isinstance(messages, list | tuple) or not messages:
        raise RequestError(f"messages is {shown(messages)}; it takes a list of messages, or a list of such lists")
    return [messages] if isinstance(messages[0], Mapping) else list(messages)


def read_prompt(given: object, tokenizer: Tokenizer, name: str = "the prompt", *, add_special_tokens: bool = True) -> Prompt:
    """One prompt with its ids; a text that is one by itself begins with what the tokenizer puts first, unless it is told not to
    `add_special_tokens`. RequestError, which calls it `name`, for what is none or is empty."""
    if isinstance(given, Mapping):
        return _from_dict(given, tokenizer, name)
    if isinstance(given, str):
        check_text(given, name)
        return _checked(Prompt(str(given), tuple(tokenizer.encode(given, add_special_tokens=add_special_tokens))), name)
    ids = _plain(given)
    if not isinstance(ids, list | tuple):
        raise RequestError(f"{name} is {shown(given)}; it takes {WANTED}")
    return _checked(Prompt(None, tuple(whole(f"token id {n} of {name}", each, 0, MOST) for n, each in enumerate(ids))), name)


def last_ids(
    ids: tuple[int, ...], most: int | None, context: int, *, spare: int = 0, name: str = "truncate_prompt_tokens"
) -> tuple[int, ...]:
    """The last `most` of the ids of a prompt, all where that is None; where it is -1, as many as leave room for `spare` more in
    the context. As vLLM's `truncate_prompt_tokens`, whose other values are a RequestError too."""
    if most is None:
        return ids
    if most == 0 or not -1 <= most <= context:
        raise RequestError(f"{name} is {most}; it takes 1 to {context}, this model's context here, or -1 for what that holds")
    return ids[-(context - spare if most == -1 else most) :]


def read_chat(
    messages: object, tokenizer: Tokenizer, template: ChatTemplate, name: str = "the conversation", **options: Any
) -> Prompt:
    """The prompt that a conversation makes. `options` are those of `ChatTemplate.render`."""
    for key in ("add_generation_prompt", "continue_final_message"):
        if options.get(key) is not None:
            flag(key, options[key])
    try:
        text = template.render(messages, **options)  # type: ignore[arg-type]  # it checks
    except RequestError as error:
        raise RequestError(f"{name}: {error}") from None
    stops = (DEFAULT_TEMPLATE_END,) if template.is_default else ()
    return _checked(Prompt(text, tuple(tokenizer.encode(text, add_special_tokens=False)), stops), name)


def _from_dict(given: Mapping[Any, Any], tokenizer: Tokenizer, name: str) -> Prompt:
    for key in given:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, n=1)
            raise RequestError(f"{name} has an unknown key {shown(key)}{f', nearest: {near[0]}' if near else ''}; {WANTED}")
    salt, text, ids = (given.get(key) for key in ("cache_salt", "prompt", "prompt_token_ids"))
    for key, value in (("cache_salt", salt), ("prompt", text)):
        if value is not None:
            check_text(value, f"{key} of {name}")
    if ids is None and text is None:
        raise RequestError(f"{name} is {shown(dict(given))}; it takes {WANTED}")
    found = read_prompt(text if ids is None else _plain(ids), tokenizer, name)
    return Prompt(text, found.ids, tenant=salt or "")


def _checked(prompt: Prompt, name: str) -> Prompt:
    if not prompt.ids:
        raise RequestError(f"{name} is empty: it needs at least one token")
    return prompt


def _plain(value: object) -> object:
    """An array of numpy, which this does not import, or a range as a list."""
    if isinstance(value, range):
        return list(value)
    return value.tolist() if type(value).__module__ == "numpy" and hasattr(value, "tolist") else value
