"""The same weights give the same logits and the same greedy tokens as transformers, for every family at every degree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints import FAMILIES
from tests.group import Group, even, layout_of
from tests.parity.reference import LIMIT, Reference, Score, chunked, compare

DEGREES = {"1": even(1), "2": even(2), "3": even(3), "3:1:1": (3.0, 1.0, 1.0), "5": even(5)}

Checkpoints = Callable[[str], Path]
Figures = Callable[..., None]
References = Callable[..., list[Reference]]


VARIANTS = (
    "llama-linear",
    "llama-yarn",
    "llama-llama3",
    "mistral-full",
    "qwen3-biased",
    "phi3-window",
    "phi3-longrope-partial",
    "deepseek-dense",
    "gemma2-full",
    "gemma3-vision",
    "gpt-neox-in-turn",
    "falcon-11b",
    "falcon-in-turn",
    "llama4-every-other",
    "glm4-moe",
)
"""What is special of these is the same on every rank: two of the degrees are left to the slow tests."""


CASES = [
    pytest.param(
        name, shares, id=f"{name}-{label}", marks=[pytest.mark.slow] if name in VARIANTS and label in ("2", "3") else []
    )
    for name in FAMILIES
    for label, shares in DEGREES.items()
]


@pytest.mark.parametrize(("name", "shares"), CASES)
def test_family(
    name: str, shares: tuple[float, ...], checkpoint: Checkpoints, references: References, figures: Figures
) -> None:
    folder, wanted, score = checkpoint(name), references(name), Score()
    with Group(layout_of(folder, shares), folder, sequences=len(wanted)) as group:
        compare(group, wanted, score)
        chunked(group, group.request(0), wanted[1], 11, score)
    figures(f"parity {name}", worst=score.worst, tokens=score.tokens, ties=score.ties)
    assert score.worst <= LIMIT
    assert score.ties == 0
