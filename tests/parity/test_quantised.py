"""What quantised weights cost a trained model: its loss on real text, at any degree."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shardwise.spec.requantised import requantised
from tests.group import Group, even, layout_of
from tests.parity.test_tinystories import CONTEXT, folder, losses, picked, stories

AT_ONCE = 8


def measured(
    data: Path, quantization: tuple[str, int] | None, shares: tuple[float, ...], texts: list[list[int]]
) -> torch.Tensor:
    """The loss of each token of each text, [tokens]."""
    layout = layout_of(folder(data), shares)
    if quantization:
        layout = replace(layout, model=requantised(layout.model, *quantization))

    def each() -> Iterator[torch.Tensor]:
        with Group(layout, folder(data), context=CONTEXT, chunk=CONTEXT, sequences=AT_ONCE) as group:
            for first in range(0, len(texts), AT_ONCE):
                some, items = texts[first : first + AT_ONCE], []
                for i, text in enumerate(some):
                    sequence = group.request(i)
                    sequence.tokens[:] = text
                    items.append(sequence.take())
                rows = group.logits(*items).split([len(text) for text in some])
                yield from (losses(part, text) for part, text in zip(rows, some, strict=True))

    return torch.cat(list(each()))


@pytest.fixture(scope="module")
def texts(data: Path) -> list[list[int]]:
    return picked(stories(data), 16)


@pytest.fixture(scope="module")
def dense(data: Path, texts: list[list[int]]) -> torch.Tensor:
    return measured(data, None, even(1), texts)


@pytest.mark.parametrize(("kind", "group", "most"), [("int8", 64, 0.005), ("int4", 32, 0.10)])
def test_perplexity(
    kind: str, group: int, most: float, data: Path, texts: list[list[int]], dense: torch.Tensor, figures: Callable[..., None]
) -> None:
    found = measured(data, (kind, group), even(1), texts)
    more = math.exp((found - dense).mean()) - 1
    figures(f"perplexity, {kind} in groups of {group}", percent_more=100 * more, tokens=len(dense))
    assert -most < more < most
    assert (found - dense).abs().mean() > 1e-4, "it is quantised"
    # The same numbers at any degree; sums over ranks round otherwise, and may round an activation the other way.
    cut = measured(data, (kind, group), (3.0, 1.0, 1.0), texts)
    assert (cut - found).abs().median() < 1e-5 and (cut - found).abs().mean() < 0.1 * (found - dense).abs().mean()
