"""Which sequences of a step are attended together: those of about equal size, so that little is computed only to pad."""

from __future__ import annotations

from collections.abc import Sequence

MOST = 3
"""Segments of one kind: each is a pass of attention in every layer."""

SMALL = 16
"""New tokens, or pages, below which padding costs less than another pass."""


def divide(counts: Sequence[int], pages: Sequence[int]) -> list[list[int]]:
    """Indices of the sequences of each segment, given their new tokens and the most pages that they have in a cache group.

    Single tokens are apart from chunks: 64 decodes beside a chunk of 512 tokens would else be padded to 64 · 512 queries.
    """
    singles = [i for i, count in enumerate(counts) if count == 1]
    chunks = [i for i, count in enumerate(counts) if count > 1]
    return [*_alike(singles, pages), *_alike(chunks, counts)]


def _alike(indices: list[int], sizes: Sequence[int]) -> list[list[int]]:
    """Cut where a size is half of the largest in its segment; at most MOST segments. Each keeps the order of `indices`."""
    found: list[list[int]] = []
    for i in sorted(indices, key=lambda i: -sizes[i]):
        largest = sizes[found[-1][0]] if found else 0
        if not found or (len(found) < MOST and largest > SMALL and 2 * sizes[i] <= largest):
            found.append([])
        found[-1].append(i)
    return [sorted(segment) for segment in found]
