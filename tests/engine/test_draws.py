"""Draws say how the next token is chosen, after whatever came before, at a cost that long prompts do not raise."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from shardwise.engine.draws import Draws
from shardwise.engine.journal import Entry
from shardwise.sched.request import SamplingParams

IDS = st.integers(0, 12)


class Prompt(tuple[int, ...]):
    """Counts how often somebody goes through it."""

    read = 0

    def __iter__(self) -> Iterator[int]:
        type(self).read += 1
        return super().__iter__()


@given(prompt=st.lists(IDS, min_size=1), answers=st.lists(st.lists(IDS, max_size=30), min_size=2, max_size=2), data=st.data())
def test_a_repetition_penalty_knows_each_id_once(prompt: list[int], answers: list[list[int]], data: st.DataObject):
    """Those of the prompt and of its own choice, however many tokens came at a time."""
    entry = Entry(1, tuple(prompt), SamplingParams(n=2, repetition_penalty=1.2), 0, 40, lambda _: None)
    draws = Draws(entry, entry.params)  # type: ignore[arg-type]
    while any(answers):
        choice = data.draw(st.sampled_from([n for n in range(2) if answers[n]]))
        for _ in range(data.draw(st.integers(1, 3))):
            if answers[choice]:
                entry.choices[choice].tokens.append(answers[choice].pop())
        for other in range(2):
            tokens = entry.choices[other].tokens
            edit = draws.draw(7, other, len(tokens)).edit
            assert edit is not None and edit.repetition == 1.2 and len(edit.seen) == len(set(edit.seen))
            assert set(edit.seen) == {*prompt, *tokens}


def test_a_prompt_is_read_once_for_all_choices_and_tokens():
    prompt = Prompt(range(1000))
    entry = Entry(1, prompt, SamplingParams(n=3, repetition_penalty=1.2), 0, 40, lambda _: None)
    draws = Draws(entry, entry.params)  # type: ignore[arg-type]
    for count in range(40):
        for choice in range(3):
            draws.draw(7, choice, count)
            entry.choices[choice].tokens.append(2000 + count)
    assert prompt.read == 1
