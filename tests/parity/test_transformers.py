"""The same weights give the same logits and the same greedy tokens as transformers, for every family at every degree."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.checkpoints import FAMILIES
from tests.group import Group, even, layout_of
from tests.parity.reference import LIMIT, Reference, Score, chunked, compare, prompts, reference

DEGREES = {"1": even(1), "2": even(2), "3": even(3), "3:1:1": (3.0, 1.0, 1.0), "5": even(5)}

Checkpoints = Callable[[str], Path]
Figures = Callable[..., None]
References = Callable[[str], list[Reference]]


@pytest.fixture(scope="session")
def references(checkpoint: Checkpoints) -> References:
    @cache
    def of(name: str) -> list[Reference]:
        folder = checkpoint(name)
        vocab = layout_of(folder, even(1)).model.vocab
        return [reference(folder, prompt) for prompt in prompts(vocab)]

    return of


@pytest.mark.parametrize("shares", DEGREES.values(), ids=DEGREES)
@pytest.mark.parametrize("name", FAMILIES)
def test_family(
    name: str, shares: tuple[float, ...], checkpoint: Checkpoints, references: References, figures: Figures
) -> None:
    folder, wanted, score = checkpoint(name), references(name), Score()
    with Group(layout_of(folder, shares), folder, sequences=len(wanted)) as group:
        compare(group, wanted, score)
        chunked(group, group.sequence(0), wanted[1], 5, score)
        chunked(group, group.sequence(1), wanted[2], 17, score)
    figures(f"parity {name}", worst=score.worst, tokens=score.tokens, ties=score.ties)
    assert score.worst <= LIMIT
    assert score.ties == 0
