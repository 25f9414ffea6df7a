"""Answers of free text with tags in them, whose content has a form: what a client sends becomes a checked tree.

The formats are those of xgrammar's structural tags (0.2.6), which vLLM takes in both forms; SGLang has the first of them.
What they mean as a grammar is in `engine/tag_grammar.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from shardwise.errors import RequestError
from shardwise.sched.checks import check_text, flag, sequence, shown, strings, whole
from shardwise.sched.given_json import object_given, written

MAX_TAGS = 1024
MAX_TRIGGERS = 128
MAX_MARK_CHARS = 4096
MAX_TIMES = 10**6


@dataclass(frozen=True, slots=True)
class AnyText:
    """Any text in which none of `excludes` comes up. It goes on to the end of the tag around it, else of the answer."""

    excludes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Exactly:
    """This text."""

    text: str


@dataclass(frozen=True, slots=True)
class Matching:
    """A text that the regular expression matches from its first character to its last."""

    regex: str


@dataclass(frozen=True)
class Json:
    """JSON of the schema."""

    schema: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Row:
    """One after the other."""

    parts: Sequence[Format]


@dataclass(frozen=True, slots=True)
class Either:
    """Any of them."""

    options: Sequence[Format]


@dataclass(frozen=True, slots=True)
class Times:
    """The content so many times in a row; None is without limit."""

    content: Format
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Tag:
    """The content between a mark and one of others."""

    begin: str
    content: Format
    ends: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Triggered:
    """Any text, until one of `triggers` comes up in it: one of `tags` has begun then. Behind it, the same again.

    `least_one`: it begins with a tag. `only_one`: nothing comes behind the first. Of the text, `excludes` as of AnyText.
    """

    triggers: tuple[str, ...]
    tags: tuple[Tag, ...]
    least_one: bool = False
    only_one: bool = False
    excludes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Separated:
    """Tags with a text between each two of them, and nothing else. The flags as those of Triggered."""

    tags: tuple[Tag, ...]
    separator: str
    least_one: bool
    only_one: bool


Format: TypeAlias = AnyText | Exactly | Matching | Json | Row | Either | Times | Tag | Triggered | Separated

_WHAT = "an object with structures and triggers, or with format"


def tag_text(name: str, value: object) -> str:
    """The structural tag as JSON text, once checked. RequestError, which begins with `name`, for what is none."""
    given = object_given(name, value, _WHAT)
    if given.pop("type", "structural_tag") not in ("structural_tag", None):
        raise RequestError(f"{name}.type is not structural_tag; leave it out")
    read_tag(name, given)
    return written(name, given)


def read_tag(name: str, given: Mapping[str, object]) -> Format:
    """The tree of a structural tag in either form. RequestError as `tag_text`."""
    if given.get("format") is not None:
        _known(name, given, ("format",))
        return _format(f"{name}.format", given["format"], free=True)
    if given.get("structures") is None or given.get("triggers") is None:
        raise RequestError(f"{name} has no {'triggers' if given.get('structures') else 'structures'}; it takes {_WHAT}")
    _known(name, given, ("structures", "triggers"))
    listed = sequence(f"{name}.structures", given["structures"], MAX_TAGS, "structures")
    tags = tuple(_structure(f"{name}.structures[{n}]", each) for n, each in enumerate(listed))
    return _triggered(name, Triggered(_texts(f"{name}.triggers", given["triggers"]), tags), "structures")


def _structure(name: str, value: object) -> Tag:
    fields = _fields(name, value)
    _known(name, fields, ("begin", "schema", "end"))
    return Tag(_text(name, fields, "begin"), _schema(name, fields, "schema"), (_text(name, fields, "end"),))


# --- formats ----------------------------------------------------------------------------------------------------------

Read = Callable[[str, Mapping[str, object], bool], Format]
"""Reads the fields of a format, which messages call by the name; the last says whether text without an end may stand there."""


def _format(name: str, value: object, *, free: bool) -> Format:
    fields = _fields(name, value)
    kind = fields.get("type")
    if not isinstance(kind, str) or kind not in _FORMATS:
        raise RequestError(f"{name}.type is {shown(kind)}, which is not supported; it takes one of {', '.join(_FORMATS)}")
    known, read = _FORMATS[kind]
    _known(name, fields, ("type", *known))
    found = read(name, fields, free)
    if isinstance(found, AnyText | Triggered) and not free:
        raise RequestError(f"{name} is {kind}, which has no end here; it can stand last, or alone in a tag with an end")
    return found


def _any_text(name: str, fields: Mapping[str, object], _free: bool) -> Format:
    return AnyText(_texts(f"{name}.excludes", fields.get("excludes") or ()))


def _exactly(name: str, fields: Mapping[str, object], _free: bool) -> Format:
    return Exactly(_text(name, fields, "value"))


def _matching(name: str, fields: Mapping[str, object], _free: bool) -> Format:
    return Matching(_text(name, fields, "pattern"))


def _json(name: str, fields: Mapping[str, object], _free: bool) -> Format:
    if fields.get("style") not in (None, "json"):
        raise RequestError(f"{name}.style is {shown(fields['style'])}, which is not supported; it takes json")
    if fields.get("any_order") not in (None, False):
        raise RequestError(f"{name}.any_order is set, which is not supported: keys come in the order of the schema")
    return _schema(name, fields, "json_schema")


def _row(name: str, fields: Mapping[str, object], free: bool) -> Format:
    parts = _elements(name, fields)
    last = len(parts) - 1
    return Row([_format(f"{name}.elements[{n}]", each, free=free and n == last) for n, each in enumerate(parts)])


def _either(name: str, fields: Mapping[str, object], free: bool) -> Format:
    return Either([_format(f"{name}.elements[{n}]", each, free=free) for n, each in enumerate(_elements(name, fields))])


def _times(least: int, most: int | None) -> Read:
    return lambda name, fields, _free: Times(_format(f"{name}.content", fields.get("content"), free=False), least, most)


def _repeat(name: str, fields: Mapping[str, object], _free: bool) -> Format:
    least = whole(f"{name}.min", fields.get("min"), 0, MAX_TIMES)
    most = whole(f"{name}.max", fields.get("max"), -1, MAX_TIMES)
    if 0 <= most < least:
        raise RequestError(f"{name}.max is {most}, which is less than min, {least}; -1 is without limit")
    return Times(_format(f"{name}.content", fields.get("content"), free=False), least, None if most < 0 else most)


def _tag(name: str, fields: Mapping[str, object], _free: bool) -> Tag:
    ends = fields.get("end")
    several = isinstance(ends, list | tuple)
    found = _texts(f"{name}.end", ends) if several else (_text(name, fields, "end"),)
    if not found:
        raise RequestError(f"{name}.end is empty; name at least one text")
    return Tag(_text(name, fields, "begin"), _format(f"{name}.content", fields.get("content"), free=all(found)), found)


def _dispatched(name: str, fields: Mapping[str, object], _free: bool) -> Format:
    triggers, excludes = (_texts(f"{name}.{key}", fields.get(key) or ()) for key in ("triggers", "excludes"))
    found = Triggered(triggers, _tags(name, fields), *_flags(name, fields), excludes)
    return _triggered(name, found, "tags")


def _separated(name: str, fields: Mapping[str, object], _free: bool) -> Format:
    return Separated(_tags(name, fields), _text(name, fields, "separator"), *_flags(name, fields))


_FORMATS: dict[str, tuple[tuple[str, ...], Read]] = {
    "any_text": (("excludes",), _any_text),
    "const_string": (("value",), _exactly),
    "regex": (("pattern",), _matching),
    "json_schema": (("json_schema", "style", "any_order"), _json),
    "sequence": (("elements",), _row),
    "or": (("elements",), _either),
    "optional": (("content",), _times(0, 1)),
    "star": (("content",), _times(0, None)),
    "plus": (("content",), _times(1, None)),
    "repeat": (("content", "min", "max"), _repeat),
    "tag": (("begin", "content", "end"), _tag),
    "triggered_tags": (("triggers", "tags", "at_least_one", "stop_after_first", "excludes"), _dispatched),
    "tags_with_separator": (("tags", "separator", "at_least_one", "stop_after_first"), _separated),
}
"""By the type: which fields it has, and what reads them."""


# --- parts ------------------------------------------------------------------------------------------------------------


def _triggered(name: str, found: Triggered, called: str) -> Triggered:
    """With the triggers that count, each of which begins some of the tags. RequestError for what could never be."""
    triggers = tuple(dict.fromkeys(found.triggers))
    # A trigger that begins with another never comes up: the other has, by then.
    kept = tuple(each for each in triggers if not any(each != other and each.startswith(other) for other in triggers))
    for each in kept:
        if within := next((other for other in kept if other != each and other in each), None):
            raise RequestError(f"{name}.triggers has {shown(each)}, in which the trigger {shown(within)} comes up first")
        if not any(tag.begin.startswith(each) for tag in found.tags):
            raise RequestError(f"{name}.triggers has {shown(each)}, with which none of {called} begins")
    for n, tag in enumerate(found.tags):
        if not tag.begin.startswith(kept):
            raise RequestError(f"{name}.{called}[{n}].begin is {shown(tag.begin)}, which begins with none of the triggers")
    if not kept:
        raise RequestError(f"{name}.triggers is empty; name at least one text")
    return Triggered(kept, found.tags, found.least_one, found.only_one, found.excludes)


def _tags(name: str, fields: Mapping[str, object]) -> tuple[Tag, ...]:
    listed = sequence(f"{name}.tags", fields.get("tags"), MAX_TAGS, "tags")
    if not listed:
        raise RequestError(f"{name}.tags is empty; name at least one tag")
    found = []
    for n, value in enumerate(listed):
        place = f"{name}.tags[{n}]"
        each = _fields(place, value)
        if each.get("type") not in (None, "tag"):
            raise RequestError(f"{place}.type is {shown(each['type'])}; it takes tag")
        _known(place, each, ("type", "begin", "content", "end"))
        found.append(_tag(place, each, False))
    return tuple(found)


def _flags(name: str, fields: Mapping[str, object]) -> tuple[bool, bool]:
    least, only = (fields.get(key) for key in ("at_least_one", "stop_after_first"))
    return flag(f"{name}.at_least_one", least or False), flag(f"{name}.stop_after_first", only or False)


def _elements(name: str, fields: Mapping[str, object]) -> list[object]:
    found = sequence(f"{name}.elements", fields.get("elements"), MAX_TAGS, "formats")
    if not found:
        raise RequestError(f"{name}.elements is empty; name at least one format")
    return found


def _schema(name: str, fields: Mapping[str, object], key: str) -> Json:
    value = {} if fields.get(key) is True else fields.get(key)
    return Json(object_given(f"{name}.{key}", value, "a JSON schema, which is an object"))


def _text(name: str, fields: Mapping[str, object], key: str) -> str:
    text = fields.get(key)
    if text is None:
        raise RequestError(f"{name}.{key} is missing; it takes a text")
    check_text(text, f"{name}.{key}")
    assert isinstance(text, str)
    if len(text) > MAX_MARK_CHARS:
        raise RequestError(f"{name}.{key} has {len(text)} characters; it takes at most {MAX_MARK_CHARS}")
    return text


def _texts(name: str, value: object) -> tuple[str, ...]:
    return strings(name, value, MAX_TRIGGERS, MAX_MARK_CHARS)


def _fields(name: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise RequestError(f"{name} is {shown(value)}; it takes an object")
    return value


def _known(name: str, fields: Mapping[str, object], known: Sequence[str]) -> None:
    """RequestError for a field that is not one of `known`: what it asks for would not be kept."""
    for key, value in fields.items():
        if key not in known and value is not None:
            raise RequestError(f"{name} has {shown(key)}, which is not supported there; it takes {', '.join(known)}")
