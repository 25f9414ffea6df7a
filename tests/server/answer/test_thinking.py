"""Reasoning in grammars: a model may think before a form, no longer than its budget, and is read as having done so."""

from __future__ import annotations

import json
import random

import llguidance
import pytest

from shardwise.engine.grammar import source
from shardwise.engine.text import open_tokenizer
from shardwise.sched.structured import StructuredOutputs
from shardwise.server.answer.style import MISTRAL_THINK, THINK, Style, detect
from shardwise.server.answer.thinking import Budget, before, free, marked
from tests.server.answer.reading import read
from tests.server.answer.test_toolgrammar import BUNDLED, SPECIALS, Vocabulary

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "maximum": 99, "minimum": 0}},
    "required": ["a"],
    "additionalProperties": False,
}
FORMS = {
    "json": (StructuredOutputs(json=SCHEMA), lambda text: 0 <= json.loads(text)["a"] <= 99),
    "regex": (StructuredOutputs(regex="[ab]{2,3}!"), lambda text: text[-1] == "!" and set(text[:-1]) <= {"a", "b"}),
    "choice": (StructuredOutputs(choice=["<b>", "no"]), lambda text: text in ("<b>", "no")),
    "lark": (StructuredOutputs(grammar='start: thought+\nthought: "w" TEXT\nTEXT: /[0-9]{1,2};/'), lambda text: text[0] == "w"),
    "gbnf": (StructuredOutputs(grammar='root ::= "x" [0-9] "."'), lambda text: text[0] == "x" and len(text) == 3),
}
STYLES = {
    "opened": Style("hermes", THINK, opened=True),
    "may open": Style("hermes", THINK),
    "tokens": Style("mistral", MISTRAL_THINK),
    "channels": Style("harmony"),
}


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(open_tokenizer(BUNDLED), (*SPECIALS, *THINK))


@pytest.fixture(scope="module")
def llguided(vocabulary: Vocabulary) -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(vocabulary))


def specials(vocabulary: Vocabulary, style: Style) -> dict[str, int]:
    """`<think>` stays characters, as where it is several tokens."""
    return {text: n for text, n in vocabulary.specials.items() if text not in THINK or style.think == MISTRAL_THINK}


def matcher(llguided: llguidance.LLTokenizer, grammar: str) -> llguidance.LLMatcher:
    made = llguidance.LLMatcher(llguided, grammar, log_level=0)
    assert not made.is_error(), f"{made.get_error()}\n{grammar}"
    return made


def drawn(
    made: llguidance.LLMatcher, vocabulary: Vocabulary, rng: random.Random, ends: list[list[int]], most: int
) -> list[int]:
    """An answer drawn at random from what the masks allow; `ends` come now and then, as by chance no long mark ever does."""
    ids: list[int] = []
    while len(ids) < most and not made.is_accepting():
        phrase = rng.choice(ends)
        if rng.random() < 0.2 and made.validate_tokens(phrase) == len(phrase):
            new = phrase
        else:
            mask = made.compute_bitmask()
            allowed = [n for n in range(len(vocabulary.tokens)) if mask[n // 8] >> n % 8 & 1]
            assert allowed, vocabulary.text(ids)
            new = [rng.choice(allowed)]
        assert made.consume_tokens(new)
        ids += new
    return ids


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", STYLES)
def test_a_form_may_follow_reasoning(llguided: llguidance.LLTokenizer, vocabulary: Vocabulary, name: str, form: str):
    style, (wanted, holds) = STYLES[name], FORMS[form]
    mark = marked(specials(vocabulary, style))
    grammar = source(StructuredOutputs(**{wanted.kind: getattr(wanted, wanted.kind), "opening": before(style, mark)}))
    reset, rng = matcher(llguided, grammar), random.Random(form)
    ends = [vocabulary("</think>"), [vocabulary.specials["[/THINK]"]], [vocabulary.specials["<|end|>"]], vocabulary("<think>")]
    thought = whole = 0
    for _ in range(12):
        made = reset.deep_copy()
        ids = drawn(made, vocabulary, rng, ends, 200)
        if made.is_accepting():
            told = read(style, vocabulary.text(ids))
            assert told.content is not None and holds(told.content), vocabulary.text(ids)
            thought, whole = thought + (told.reasoning is not None), whole + 1
    assert whole >= 6 and thought >= 1
    for text in ("say", "Hm "):
        assert name == "opened" or reset.deep_copy().validate_tokens(vocabulary(text)) == 0


@pytest.mark.parametrize("tokens", [0, 1, 7])
@pytest.mark.parametrize("form", [None, "json"])
@pytest.mark.parametrize("name", STYLES)
def test_a_budget_is_kept(llguided: llguidance.LLTokenizer, vocabulary: Vocabulary, name: str, form: str | None, tokens: int):
    """However long the model would think, the mark comes at the end of the budget, and the answer after it."""
    style = STYLES[name]
    begin, end = ("<|message|>", "<|end|>") if style.think is None else style.think
    known = specials(vocabulary, style)
    budget = Budget(tokens, vocabulary.specials[begin], vocabulary.specials[end])
    if form is None:
        grammar = free(style, known, budget)
    else:
        grammar = source(StructuredOutputs(json=SCHEMA, opening=before(style, marked(known), budget)))
    made = matcher(llguided, grammar)
    head = (
        [vocabulary.specials["<|channel|>"], *vocabulary("analysis"), budget.begin] if style.think is None else [budget.begin]
    )
    assert style.opened or made.consume_tokens(head)
    word = vocabulary("x")
    for _ in range(tokens):
        assert made.validate_tokens([budget.end]) == 1, "it may end before"
        assert made.validate_tokens(word) == 1 and made.consume_tokens(word)
    mask = made.compute_bitmask()
    assert [n for n in range(len(vocabulary.tokens)) if mask[n // 8] >> n % 8 & 1] == [budget.end]
    assert made.consume_tokens([budget.end])
    final: list[int] = []
    if style.think is None:
        final = [vocabulary.specials["<|start|>"], *vocabulary("assistant"), vocabulary.specials["<|channel|>"]]
        assert made.validate_tokens([*final, *vocabulary("analysis")]) < len(final) + len(vocabulary("analysis"))
        final += [*vocabulary("final"), vocabulary.specials["<|message|>"]]
    assert made.consume_tokens([*final, *vocabulary('{"a": 1}')]) and made.is_accepting()


def test_a_free_answer_without_reasoning_is_free(llguided: llguidance.LLTokenizer, vocabulary: Vocabulary):
    style = STYLES["may open"]
    budget = Budget(3, vocabulary.specials["<think>"], vocabulary.specials["</think>"])
    made = matcher(llguided, free(style, specials(vocabulary, style), budget))
    call = [*vocabulary("I call. "), vocabulary.specials["[TOOL_CALLS]"], *vocabulary(" <think> is no mark here")]
    assert made.deep_copy().validate_tokens(call) == len(call)
    for spelled in (vocabulary("<think>x"), vocabulary(" \n<think>x")):
        assert made.deep_copy().validate_tokens(spelled) < len(spelled), "that would be reasoning without a budget"


def test_the_prompt_says_whether_there_is_reasoning():
    source_text = "{{ '<think>' }}{{ '</think>' }}"
    for tail, (opened, closed) in {
        "<|im_start|>assistant\n": (False, False),
        "assistant\n<think>\n": (True, False),
        "assistant\n<think>\n\n</think>\n\n": (False, True),
    }.items():
        style = detect(source_text, tail)
        assert (style.opened, style.closed) == (opened, closed)
