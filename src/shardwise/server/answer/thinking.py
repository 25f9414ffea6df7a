"""Reasoning in the grammars of answers: what a model may think before a form, a call or anything else, and for how long.

Text in the dialect of Lark that llguidance reads. A budget counts tokens, so it needs a mark that is one token: at its end the
mark is all that may come.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shardwise.server.answer.style import Style

Mark = Callable[[str], str]
"""A mark as a grammar writes it: as a token where it is one, else as its characters."""


@dataclass(frozen=True, slots=True)
class Budget:
    """At most so many `tokens` of reasoning; `begin` and `end` are the ids of the marks around it."""

    tokens: int
    begin: int
    end: int


def literal(text: str) -> str:
    """A literal of the grammar."""
    return json.dumps(text, ensure_ascii=False)


def marked(tokens: Mapping[str, int]) -> Mark:
    """Writes those of `tokens`, ids by their texts, as tokens."""
    return lambda text: f"<[{tokens[text]}]>" if text in tokens else literal(text)


def think_marks(style: Style) -> tuple[str, str] | None:
    """What reasoning stands between, None where the model is not known to reason."""
    return ("<|message|>", "<|end|>") if style.calls == "harmony" else style.think


def before(style: Style, mark: Mark, budget: Budget | None = None) -> str:
    """Rules for `opening`: what stands before an answer that has a form, or that is a call. Only for styles that reason."""
    if style.calls == "harmony":
        final = f'final: {mark("<|channel|>")} "final" {mark("<|message|>")}'
        return "\n".join(["opening: (analysis begin)? final", final, *analysis(mark, budget)])
    assert style.think
    thought = until("thought", style.think[1], mark, budget)
    begin = f"<[{budget.begin}]>" if budget else mark(style.think[0])
    opening = "thought WHITE" if style.opened else f"({begin} thought WHITE)?"
    return "\n".join([f"opening: {opening}", thought, "WHITE: /[ \\n]{0,4}/"])


def free(style: Style, specials: Mapping[str, int], budget: Budget) -> str:
    """A grammar for any answer, special tokens among it, of whose reasoning the budget is kept. `specials`: ids by text."""
    mark, text = marked(specials), "TEXT: /(?s:.*)/"
    if style.calls == "harmony":  # reasoning comes first, in one message: what follows is none
        head = [f"head: TO? {mark('<|channel|>')} HEAD", "HEAD: /(final|commentary)(?s:.*)/", "TO: / to=[^<]*/"]
        rest = f"rest: ({_others(specials, specials['<|start|>'])} TEXT? | begin head)*"
        return "\n".join(["start: (analysis begin)? head rest", *head, rest, *analysis(mark, budget), text])
    assert style.think
    any_text = f"rest: TEXT? ({_others(specials)} TEXT?)*"
    rules = [until("thought", style.think[1], mark, budget), any_text, text]
    if style.opened:
        return "\n".join(["start: thought rest", *rules])
    # An answer that does not begin with reasoning must not begin with its mark, however it is spelled.
    first = f"FIRST: /(?s:.*)/ & ~/\\s*{escaped(style.think[0])}(?s:.*)/"
    plain = f"plain: FIRST? ({_others(specials, budget.begin)} rest)?"
    return "\n".join([f"start: (SPACE? <[{budget.begin}]> thought rest) | plain", plain, first, "SPACE: /\\s+/", *rules])


def _others(specials: Mapping[str, int], but: int = -1) -> str:
    """Any special token but one. A wildcard would be any token at all."""
    ids = sorted(set(specials.values()) - {but})
    return f"<[{','.join(map(str, ids))}]>"


def analysis(mark: Mark, budget: Budget | None = None) -> list[str]:
    """Rules for a message of reasoning in the channels of gpt-oss, and for how the next message begins."""
    return [
        f'begin: {mark("<|start|>")} "assistant"',
        f'analysis: {mark("<|channel|>")} "analysis" {mark("<|message|>")} thought',
        until("thought", "<|end|>", mark, budget),
    ]


def until(name: str, end: str, mark: Mark, budget: Budget | None = None) -> str:
    """A rule for any text and the mark that ends it. The text does not spell the mark: it would be read as one."""
    token = f"<[{budget.end}]>" if budget else mark(end)
    if not token.startswith("<["):
        return f"{name}[lazy]: /(?s:.*){escaped(end)}/"
    if budget and not budget.tokens:
        return f"{name}: {token}"
    limit = f"[max_tokens={budget.tokens}]" if budget else ""
    inner = name.upper()
    text = f"{inner}: /(?s:.*)/ & ~/(?s:.*){escaped(end)}(?s:.*)/"
    return f"{name}: {name}_text {token}\n{name}_text{limit}: {inner}\n{text}"


def escaped(text: str) -> str:
    """Literal characters within `/.../`."""
    return re.sub(r"([^\w\s<>])", r"\\\1", text)
