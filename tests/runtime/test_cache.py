"""The KV cache: one arena, cut into disjoint views that use all of it, and what is left in a page harms nobody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from shardwise.comm.solo import Solo
from shardwise.nn.batch import Rank
from shardwise.runtime.cache import PagedCache
from shardwise.spec.layout import PAGE_TOKENS, Layout
from tests.checkpoints import FAMILIES
from tests.group import Group, even, layout_of

CPU = torch.device("cpu")
Checkpoints = Callable[[str], Path]


def cache_of(layout: Layout, rank: int, pages: tuple[int, ...]) -> PagedCache:
    dtypes = getattr(torch, layout.dtype), getattr(torch, layout.kv_dtype)
    return PagedCache(Rank(layout, rank, Solo(), CPU, *dtypes), pages)


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("shares", [even(1), (3.0, 1.0, 1.0), even(5), (1.0, 1e-6)], ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen2-window", "mistral-window", "llama-mqa", "gpt2", "deepseek-v2"])
def test_views_are_disjoint_and_use_all(name: str, shares: tuple[float, ...], kv_dtype: str) -> None:
    layout = replace(layout_of(FAMILIES[name], shares), kv_dtype=kv_dtype)
    pages = tuple(3 + 2 * g for g in range(len(layout.cache)))
    for rank in range(len(shares)):
        cache = cache_of(layout, rank, pages)
        assert cache.arena.nbytes == layout.kv_bytes(rank, pages)
        spans = []
        for layer in range(layout.model.layers):
            tensors, group = cache.layer(layer)
            kept = layout.kept(layout.cache[group], layout.mesh.coords(rank))
            for part, (heads, dim) in zip(tensors, kept, strict=True):
                assert part.shape == (pages[group], PAGE_TOKENS, heads, dim)
                assert part.dtype == getattr(torch, kv_dtype) and part.is_contiguous()
                spans.append((part.data_ptr(), part.data_ptr() + part.nbytes))
            assert layer in layout.cache[group].layers
        used = sorted(span for span in spans if span[0] < span[1])
        assert all(end == start for (_, end), (start, _) in pairwise(used))
        assert sum(end - start for start, end in used) == cache.arena.nbytes


@pytest.mark.parametrize("group", [0, 1])
def test_copied_pages_are_whole_in_every_layer_of_their_group_and_nothing_else_moves(group: int) -> None:
    """Page 1 becomes page 0 while 0 becomes 3 and 4: what was there before is what is copied."""
    layout = layout_of(FAMILIES["qwen2-window"], (3.0, 1.0, 1.0))
    for rank in range(3):
        cache = cache_of(layout, rank, (5, 6))
        cache.arena.copy_(torch.randint(0, 100, cache.arena.shape, generator=torch.Generator().manual_seed(rank)))
        before = {layer: [t.clone() for t in cache.layer(layer)[0]] for layer in range(layout.model.layers)}
        cache.copy(group, [1, 0, 0], [0, 3, 4])
        for layer, old in before.items():
            found, own = cache.layer(layer)
            places = [1, 1, 2, 0, 0, 5] if own == group else [0, 1, 2, 3, 4, 5]
            for now, then in zip(found, old, strict=True):
                assert torch.equal(now.view(torch.uint8), then.view(torch.uint8)[places[: len(then)]])
    assert {cache.layer(layer)[1] for layer in before} == {0, 1}


@pytest.mark.parametrize(("sources", "targets"), [([0, 1], [2]), ([0, 1], [2, 2]), ([], [1])], ids=str)
def test_pages_are_copied_one_to_one(sources: list[int], targets: list[int]) -> None:
    cache = cache_of(layout_of(FAMILIES["llama"], even(1)), 0, (5,))
    with pytest.raises(ValueError, match="one target for each source, and none twice"):
        cache.copy(0, sources, targets)


def tokens(length: int, seed: int) -> list[int]:
    return torch.randint(3, 130, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def run(group: Group, index: int, ids: list[int], chunk: int) -> torch.Tensor:
    """Logits of all of `ids`, in chunks."""
    sequence, parts = group.request(index), []
    sequence.tokens[:] = ids
    while sequence.computed < len(ids):
        parts.append(group.logits(sequence.take(chunk)))
    return torch.cat(parts)


@pytest.mark.parametrize("name", ["llama", "mistral-window", "qwen2-window", "llama-mqa", "deepseek-v2"])
def test_a_page_that_held_infinities_is_as_good_as_new(name: str, checkpoint: Checkpoints) -> None:
    """A request that overflowed leaves NaN in its pages; the next to get them sees none of it, not even behind the mask."""
    folder = checkpoint(name)
    with Group(layout_of(folder, even(2)), folder) as group:
        want = run(group, 0, tokens(45, 1), 7)
        for bad in (torch.nan, torch.inf):
            for runner in group.runners:
                runner.cache.arena.view(torch.float32).fill_(bad)
            assert torch.equal(run(group, 0, tokens(45, 1), 7), want)


@pytest.mark.parametrize("shares", [even(1), (3.0, 1.0, 1.0)], ids=str)
def test_a_window_needs_no_more_pages_than_its_ring(shares: tuple[float, ...], checkpoint: Checkpoints) -> None:
    """A sequence of many times the window, through a ring of pages as small as the layout allows."""
    folder, ids = checkpoint("mistral-window"), tokens(120, 2)
    layout = layout_of(folder, shares)
    with Group(layout, folder, context=128, chunk=128) as roomy, Group(layout, folder, context=128, chunk=9) as ring:
        assert sum(ring.pages) < sum(roomy.pages) / 2
        want = run(roomy, 0, ids, 120)
        for chunk in (9, 4, 1):
            found = run(ring, 0, ids, chunk)
            assert (found - want).abs().max() < 1e-5 * want.abs().max()


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "float16", "int8"])
@pytest.mark.parametrize("name", ["llama-9-3", "deepseek-v2"])
def test_a_narrower_cache_rounds_and_nothing_else(name: str, kv_dtype: str, checkpoint: Checkpoints) -> None:
    """And rounds alike, however a prompt is divided into steps."""
    folder = checkpoint(name)
    layout = layout_of(folder, (2.0, 1.0))
    with Group(layout, folder) as wide, Group(replace(layout, kv_dtype=kv_dtype), folder) as narrow:
        want, found, other = (run(group, 0, tokens(40, 3), chunk) for group, chunk in ((wide, 16), (narrow, 16), (narrow, 7)))
    error = ((found - want).abs().max() / want.abs().max()).item()
    assert 1e-5 < error < 0.05
    assert (other - found).abs().max() < error / 2 * want.abs().max()
