"""Steps in a row: tokens that never reach the host, guesses, forked sequences, and the same tokens at every degree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from shardwise.runtime.limits import Buckets
from shardwise.runtime.recent import STEPS, Recent
from shardwise.sched.step import Chosen, Draw, Edit, Item, Pages
from shardwise.spec.layout import PAGE_TOKENS
from tests.group import Group, Request, even, greedy, layout_of
from tests.runtime.sampling import only

Checkpoints = Callable[[str], Path]

PENALISED = Edit(repetition=1.4, presence=0.3, frequency=0.2)
DRAWS = [
    greedy(0),
    Draw(1, 1.0, 11),
    Draw(2, 0.8, 12, top_k=6),
    Draw(3, 1.2, 13, top_p=0.9, choice=1),
    Draw(4, 1.0, 14, min_p=0.05, logprobs=2),
    Draw(5, 0.9, 15, edit=PENALISED),
]
PROMPTS = [[3, 14, 15], [9, 26, 5, 35, 8, 97, 93], [23], [84] * 20, [62, 64, 33], [83, 27, 95, 2, 88]]
NEW = 20


def penalised(draw: Draw, prompt: Sequence[int], written: Sequence[int]) -> Draw:
    """The draw as it is after these tokens: penalties know them."""
    if draw.edit is None:
        return draw
    counts = tuple((token, written.count(token)) for token in dict.fromkeys(written))
    return replace(draw, edit=replace(draw.edit, seen=tuple(dict.fromkeys((*prompt, *written))), written=counts))


def prefilled(group: Group) -> list[Request]:
    sequences = [group.request(i) for i in range(len(PROMPTS))]
    for sequence, prompt in zip(sequences, PROMPTS, strict=True):
        sequence.tokens[:] = prompt
    return sequences


def generate(group: Group) -> list[list[Chosen]]:
    """What each prompt is continued with, token by token, all of them in every step."""
    sequences = prefilled(group)
    found: list[list[Chosen]] = [[] for _ in sequences]
    for _ in range(NEW):
        draws = [
            penalised(draw, prompt, [one.token for one in own]) for draw, prompt, own in zip(DRAWS, PROMPTS, found, strict=True)
        ]
        results = group.results(group.step(*(s.take(drawn=True) for s in sequences)), *draws)
        for sequence, own, result in zip(sequences, found, results, strict=True):
            own.append(only(result))
            sequence.tokens.append(own[-1].token)
    return found


def ids(found: list[list[Chosen]]) -> list[list[int]]:
    return [[one.token for one in own] for own in found]


@pytest.fixture(scope="module")
def alone(checkpoint: Checkpoints) -> list[list[Chosen]]:
    """Of one rank."""
    with Group(layout_of(checkpoint("llama"), even(1)), checkpoint("llama"), sequences=len(PROMPTS)) as group:
        return generate(group)


@pytest.mark.parametrize("buckets", [Buckets(), Buckets.up_to(800)], ids=["exact", "padded"])
@pytest.mark.parametrize("shares", [even(2), (3.0, 1.0, 1.0), (1.0, 1e-6), even(5)], ids=str)
def test_every_degree_draws_the_same(
    shares: tuple[float, ...], buckets: Buckets, checkpoint: Checkpoints, alone: list[list[Chosen]]
) -> None:
    with Group(layout_of(checkpoint("llama"), shares), checkpoint("llama"), sequences=len(PROMPTS), buckets=buckets) as group:
        found = generate(group)
    assert ids(found) == ids(alone)
    for one, other in zip(found[4], alone[4], strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert one.rank == other.rank and [i for i, _ in one.top] == [i for i, _ in other.top]


# --- sources ----------------------------------------------------------------------------------------------------------


def follow(item: Item, step: int) -> Item:
    """The next token of the same sequence, which step `step` draws."""
    at = item.start + item.count
    return replace(item, tokens=(), source=step, start=at, known=0)


@pytest.mark.parametrize("name", ["llama", "mistral-window"])
@pytest.mark.parametrize("shares", [even(1), (3.0, 1.0, 1.0)], ids=str)
def test_tokens_go_from_step_to_step_on_the_device(name: str, shares: tuple[float, ...], checkpoint: Checkpoints) -> None:
    """Twelve steps whose tokens the host has not seen, in changing order, are those of twelve steps with ids."""
    layout, folder = layout_of(checkpoint(name), shares), checkpoint(name)
    draws = [replace(draw, edit=None) for draw in DRAWS]
    with Group(layout, folder, sequences=len(PROMPTS)) as group:
        sequences = prefilled(group)
        items = [sequence.take(drawn=True) for sequence in sequences]
        steps, order = [group.step(*items)], list(range(len(items)))
        for _ in range(11):
            order = order[1:] + order[:1]
            items = [follow(item, steps[-1].number) for item in items]
            # The pages for all that comes are there from the start.
            grown = [replace(item, pages=whole(sequence)) for item, sequence in zip(items, sequences, strict=True)]
            steps.append(group.step(*(grown[i] for i in order)))
        found: dict[int, list[int]] = {i: [] for i in range(len(items))}
        for step in steps:
            for result in group.results(step, *(draws[item.sequence] for item in step.items)):
                found[result.sequence].append(only(result).token)
        sequences = prefilled(group)
        for i in range(12):
            items = [sequence.take(drawn=True) for sequence in sequences]
            results = group.results(group.step(*items), *draws)
            for sequence, result in zip(sequences, results, strict=True):
                assert only(result).token == found[sequence.index][i]
                sequence.tokens.append(only(result).token)


def whole(sequence: Request) -> tuple[Pages, ...]:
    """All pages of a sequence, from its first token on."""
    return tuple(Pages(0, own) for own in sequence.ids)


def test_a_source_that_is_forgotten_is_refused() -> None:
    recent = Recent(3, torch.device("cpu"))
    for number in range(1, STEPS + 3):
        recent.keep(number, [5, 6], torch.tensor([number, -number]))
        recent.keep(100 + number, [], torch.empty(0, dtype=torch.int64))
    for number in range(3, STEPS + 3):
        assert recent.tokens[recent.place(number, 5)] == number
        assert recent.tokens[recent.place(number, 6)] == -number
    for number, sequence in ((2, 5), (3, 7), (100, 5)):
        with pytest.raises(ValueError, match=f"no token of sequence {sequence} is kept from step {number}; kept are those"):
            recent.place(number, sequence)


def test_more_sequences_than_have_room_are_refused() -> None:
    recent = Recent(2, torch.device("cpu"))
    with pytest.raises(ValueError, match="step 9 draws for 3 sequences; this rank takes up to 2"):
        recent.keep(9, [1, 2, 3], torch.tensor([4, 5, 6]))


def test_draws_belong_to_the_last_forward(checkpoint: Checkpoints) -> None:
    with Group(layout_of(checkpoint("llama"), even(1)), checkpoint("llama")) as group:
        [runner] = group.runners
        sequence = group.request()
        sequence.tokens[:] = [5, 6, 7]
        with pytest.raises(ValueError, match="draws for step 1, but no step waits"):
            runner.sample(1, [greedy(0)])
        runner.forward(group.step(sequence.take(drawn=True)))
        with pytest.raises(ValueError, match="draws for step 2, but step 1 waits"):
            runner.sample(2, [greedy(0)])


# --- drafts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shares", [even(1), (3.0, 1.0, 1.0)], ids=str)
@pytest.mark.parametrize("wrong", [1, 2, 3, 5, 99])
def test_guesses_change_no_token(
    wrong: int, shares: tuple[float, ...], checkpoint: Checkpoints, alone: list[list[Chosen]]
) -> None:
    """Three guesses in each step, every `wrong`th of them wrong: what comes of it is what comes without."""
    want = ids(alone)
    with Group(layout_of(checkpoint("llama"), shares), checkpoint("llama"), sequences=len(PROMPTS)) as group:
        sequences = prefilled(group)
        found: list[list[int]] = [[] for _ in PROMPTS]
        steps = 0
        while any(len(own) < NEW - 4 for own in found):
            steps += 1
            items, draws = [], []
            for sequence, own, draw, prompt in zip(sequences, found, DRAWS, PROMPTS, strict=True):
                guesses = [
                    (token + (1 if (len(own) + i) % wrong == 0 else 0)) % 131
                    for i, token in enumerate(want[sequence.index][len(own) : len(own) + 3])
                ]
                drafts = guesses if own else []
                item = replace(sequence, tokens=[*sequence.tokens, *drafts]).take(drawn=True)
                items.append(replace(item, drafts=len(drafts)))
                draws.append(penalised(draw, prompt, own))
            results = group.results(group.step(*items), *draws)
            for sequence, own, item, result in zip(sequences, found, items, results, strict=True):
                assert 1 <= len(result.tokens) <= 1 + item.drafts
                drawn = [chosen.token for chosen in result.tokens]
                right = [a == b for a, b in zip(drawn, item.tokens[len(item.tokens) - item.drafts :], strict=False)]
                assert all(right[: len(drawn) - 1]) and (len(drawn) == item.drafts + 1 or not right[len(drawn) - 1])
                sequence.tokens += drawn
                sequence.computed = len(sequence.tokens) - 1
                own += drawn
        assert [own[: NEW - 4] for own in found] == [own[: NEW - 4] for own in want]
        assert steps < NEW - 4 if wrong > 1 else steps == NEW - 4


# --- copies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "qwen2-window"])
def test_a_forked_sequence_goes_its_own_way(name: str, checkpoint: Checkpoints) -> None:
    """Two continuations of one prompt share its full pages; the last, half full one is copied in the step that first writes."""
    folder, prompt = checkpoint(name), list(range(3, 3 + PAGE_TOKENS + 5))
    layout = layout_of(folder, (3.0, 1.0, 1.0))
    with Group(layout, folder, sequences=3) as group:
        one, other, spare = group.request(0), group.request(1), group.request(2)
        one.tokens[:] = prompt
        group.logits(one.take())
        fork = Request(layout, 1, tuple((a[0], *b[1:]) for a, b in zip(one.ids, other.ids, strict=True)), [*prompt, 50])
        fork.computed = len(prompt)
        one.tokens.append(40)
        copies = tuple(((a[1], b[1]),) for a, b in zip(one.ids, other.ids, strict=True))
        step = replace(group.step(one.take(), fork.take()), copies=copies)
        first, *_ = group.each(lambda runner: runner.logits(step))
        one.tokens.append(41)
        fork.tokens.append(51)
        second = group.logits(one.take(), fork.take())
        for continued, at in (((40, 41), 0), ((50, 51), 1)):
            spare.tokens[:], spare.computed = [*prompt, *continued], 0
            want = group.logits(spare.take())
            for found, place in ((first, -2), (second, -1)):
                assert (found[at] - want[place]).abs().max() < 1e-5 * want.abs().max()


# --- what waits -------------------------------------------------------------------------------------------------------


class Reads(TorchDispatchMode):
    """Counts what takes a value off the device, or gives a result whose shape is one."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = [x for x in args[1] if x is not None and x.dtype == torch.bool] if name.startswith("index") else []
        if name in ("_local_scalar_dense", "nonzero", "masked_select") or masks:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["llama", "qwen2-window", "phi3-longrope"])
def test_a_forward_depends_on_no_value(name: str, checkpoint: Checkpoints) -> None:
    with Group(layout_of(checkpoint(name), even(1)), checkpoint(name), sequences=len(PROMPTS)) as group:
        [runner] = group.runners
        items = [sequence.take(drawn=True) for sequence in prefilled(group)]
        items[0] = replace(items[0], targets=(5, 6), top=2)
        with Reads() as reads:
            runner.forward(group.step(*items))
        assert reads.found == []
        with Reads() as reads:
            assert torch.ones(1).item() == 1
            assert len(torch.ones(3)[torch.ones(3) > 0]) == 3
        assert reads.found == ["_local_scalar_dense", "index"]
