"""What a client got, byte by byte with times, and what that tells: choices, counts, ends, and what is wrong with the stream.

Nothing is judged here by what should have come; only what no stream may ever hold is a flaw. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

End = Literal["closed", "cut", "late", "unreachable"]
TEXTS = ("content", "reasoning_content", "reasoning", "refusal")
DONE = b"[DONE]"


@dataclass(frozen=True, slots=True)
class Heard:
    """One request as its client saw it; times by one clock, in seconds. `status` is None where no headers came. `end`: the
    answer was whole as HTTP counts it, or the connection broke, or time was up, or there was none."""

    sent_s: float
    status: int | None
    pieces: tuple[tuple[float, bytes], ...]
    end: End
    ended_s: float
    why: str = ""


@dataclass(slots=True)
class Choice:
    """One choice: its texts by field, its tokens where they are told, and every finish reason that came."""

    texts: dict[str, str] = field(default_factory=dict)
    ids: list[int] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Told:
    """All of a stream. `usages`: (prompt, completion, total) tokens; `times`: when tokens came; `flaws`: what is wrong with the
    stream in itself."""

    choices: dict[int, Choice] = field(default_factory=dict)
    usages: list[tuple[int, int, int]] = field(default_factory=list)
    dones: int = 0
    error: str | None = None
    flaws: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    id: str | None = None


def told(heard: Heard) -> Told:
    """What the answer tells, as far as it came. An answer without events (a refusal) tells its error."""
    found = Told()
    if heard.status != 200:
        found.error = _complaint(heard)
        return found
    for at, event in _events(heard, found):
        if event == DONE:
            found.dones += 1
            if found.dones == 2:
                found.flaws.append("two ends: [DONE] comes twice")
            continue
        if found.dones:
            found.flaws.append("an event comes after [DONE]")
        _take(found, event, at)
    return found


def _complaint(heard: Heard) -> str | None:
    if heard.status is None:
        return None
    data = b"".join(piece for _, piece in heard.pieces)
    try:
        message = _message(json.loads(data))
    except ValueError:
        message = data[:200].decode("utf-8", "replace")
    return f"{heard.status}: {' '.join(message.split())[:200]}"


def _message(given: object) -> str:
    inner = given.get("error", given) if isinstance(given, dict) else given
    return str(inner.get("message", inner)) if isinstance(inner, dict) else str(inner)


def _events(heard: Heard, found: Told) -> Iterator[tuple[float, bytes]]:
    """(time, data) of each event. What is behind the last whole one is a flaw, unless the stream was cut there."""
    rest = b""
    for at, piece in heard.pieces:
        rest = (rest + piece).replace(b"\r\n", b"\n")
        *whole, rest = rest.split(b"\n\n")
        for block in whole:
            lines = [line[5:].strip() for line in block.split(b"\n") if line.startswith(b"data:")]
            if lines:
                yield at, b"\n".join(lines)
            elif any(line and not line.startswith((b":", b"event:", b"id:", b"retry:")) for line in block.split(b"\n")):
                found.flaws.append(f"not an event: {block[:60]!r}")
    if rest.strip() and heard.end == "closed":
        found.flaws.append(f"the stream ends within an event: {rest[:60]!r}")


def _take(found: Told, event: bytes, at: float) -> None:
    try:
        given = json.loads(event.decode("utf-8"))
    except UnicodeDecodeError as error:
        found.flaws.append(f"invalid UTF-8: byte {error.start} of an event is 0x{event[error.start]:02X}")
        return
    except ValueError:
        found.flaws.append(f"an event is no JSON: {event[:60]!r}")
        return
    if not isinstance(given, dict):
        found.flaws.append(f"an event is no object: {event[:60]!r}")
        return
    if given.get("error") is not None:
        if found.error is not None:
            found.flaws.append("two ends: an error comes twice")
        found.error = _message(given)
        return
    if found.error is not None:
        found.flaws.append("an event comes after an error")
    if found.id is None:
        found.id = given.get("id")
    elif given.get("id") != found.id:
        found.flaws.append(f"the id changes from {found.id} to {given.get('id')}")
    if (usage := given.get("usage")) is not None:
        found.usages.append(tuple(usage.get(f"{name}_tokens", -1) for name in ("prompt", "completion", "total")))
    for choice in given.get("choices") or ():
        _add(found, choice, at)


def _add(found: Told, given: dict[str, Any], at: float) -> None:
    index = given.get("index", 0)
    choice = found.choices.setdefault(index, Choice())
    delta = given.get("delta") or {}
    texts = {"text": given.get("text"), **{name: delta.get(name) for name in TEXTS}}
    ids = given.get("token_ids") or []
    fresh = {name: text for name, text in texts.items() if text}
    if (fresh or ids) and choice.reasons:
        found.flaws.append(f"choice {index} goes on after its finish reason")
    for name, text in fresh.items():
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            found.flaws.append(f"invalid text: half a surrogate pair in choice {index}")
        choice.texts[name] = choice.texts.get(name, "") + text
    choice.ids += ids
    if fresh or ids:
        found.times.append(at)
    if (reason := given.get("finish_reason")) is not None:
        choice.reasons.append(reason)
        if len(choice.reasons) == 2:
            found.flaws.append(f"two ends: choice {index} has a second finish reason")


def pause(times: list[float], sent_s: float, fault_s: float, ended_s: float) -> float | None:
    """The longest silence that a client had after the fault, which began with it at the earliest; None where it had nothing to
    wait for. Not the time to the next token: one may have been on its way already, with nothing behind it for long."""
    begin = max(sent_s, fault_s)
    after = [at for at in times if at > begin]
    if ended_s <= fault_s or not after:
        return None
    return max(b - a for a, b in zip([begin, *after], after, strict=False))
