"""What the grammar of one turn's answer is: reasoning, within its budget, before a form, a call, or whatever the model says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from shardwise.engine.text import Tokenizer
from shardwise.errors import RequestError
from shardwise.sched.request import SamplingParams
from shardwise.sched.structured import StructuredOutputs
from shardwise.server.answer.choice import Tool, ToolChoice
from shardwise.server.answer.style import Style
from shardwise.server.answer.thinking import Budget, before, free, marked, think_marks
from shardwise.server.answer.toolgrammar import tool_grammar
from shardwise.server.refusal import Refusal


class Turn(Protocol):
    """What is asked of here of a turn; `server/turn.py` says what it means."""

    @property
    def params(self) -> SamplingParams: ...
    @property
    def tools(self) -> Sequence[Tool]: ...
    @property
    def offered(self) -> str: ...
    @property
    def tool_choice(self) -> ToolChoice: ...
    @property
    def parallel(self) -> bool: ...
    @property
    def continue_final_message(self) -> bool: ...
    @property
    def split_reasoning(self) -> bool: ...
    @property
    def budget(self) -> int | None: ...
    @property
    def lenient(self) -> bool: ...


def shaped(turn: Turn, style: Style, tokenizer: Tokenizer) -> tuple[SamplingParams, Style]:
    """What the turn is drawn with, and the style that its answer is read in. RequestError for what contradicts, Refusal for a
    budget that cannot be kept."""
    params = turn.params
    if style.needs_special_tokens and params.skip_special_tokens:
        params = replace(params, skip_special_tokens=False)
    form, called = params.structured_outputs, turn.tool_choice not in ("none", "auto")
    if form is not None and called:
        raise RequestError("tool_choice asks for a call, and the form of the answer is given too; leave one of them out")
    if not turn.split_reasoning:
        style = replace(style, think=None, opened=False)
    # A model that was told not to reason goes on where its reasoning would have ended.
    goes_on = turn.continue_final_message and not style.opened
    thinks = think_marks(style) is not None and not (style.closed or goes_on)
    specials = {tokenizer.token_text(token): token for token in sorted(tokenizer.special_ids)}
    budget = None if turn.budget is None or not thinks else _budget(turn, style, specials, tokenizer)
    if called:
        written = style if thinks else replace(style, think=None)
        grammar = tool_grammar(written, turn.tools, turn.tool_choice, turn.parallel, specials, budget)
        return replace(params, structured_outputs=StructuredOutputs(grammar=grammar, name=turn.offered)), style
    if form is None:
        if budget is not None:
            form = StructuredOutputs(grammar=free(style, specials, budget), name="thinking_token_budget")
        return replace(params, structured_outputs=form), style
    if thinks:
        form = replace(form, opening=before(style, marked(specials), budget))
        return replace(params, structured_outputs=form), style
    return params, replace(style, think=None, opened=False)  # the form holds from the first character on


def _budget(turn: Turn, style: Style, specials: dict[str, int], tokenizer: Tokenizer) -> Budget | None:
    """None or a Refusal where the marks around the reasoning are not tokens: it could not be ended between two of them."""
    marks = think_marks(style)
    assert marks is not None and turn.budget is not None
    found = []
    for mark in marks:
        ids = [specials[mark]] if mark in specials else tokenizer.encode(mark, add_special_tokens=False)
        if len(ids) != 1:
            if turn.lenient:
                return None
            raise Refusal(
                400, f"the reasoning of this model cannot be held to a budget: its mark {mark} is {len(ids)} tokens, not one; "
                "bound reasoning and answer together by max_completion_tokens",
                param="thinking_token_budget",
            )  # fmt: skip
        found += ids
    return Budget(turn.budget, *found)
