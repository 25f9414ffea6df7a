"""Weights that are quantised while they are loaded: the same numbers at every degree, from any way in which they are stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch

from shardwise.nn.kernels.packing import Packed, dequantise, quantise, unpack
from shardwise.runtime import load
from shardwise.spec.binding import bind
from shardwise.spec.checkpoint import open_checkpoint
from shardwise.spec.layout import Layout, Slice
from shardwise.spec.requantised import alike, requantised
from tests.group import Group, even, layout_of
from tests.nn.kernels.paths import needs_compiled
from tests.runtime.test_bytes import storages
from tests.runtime.test_load import stored, whole

CPU = torch.device("cpu")
Checkpoints = Callable[[str], Path]

LOADED = ["llama-tied", "llama-mqa", "gpt2", "phi3", "falcon-40b", "mixtral", "llama4", "deepseek-v2"]
"""Tied and untied, uneven heads; stored transposed, one after another in a tensor, head by head; experts apart and together."""

COMPUTED = [("llama-tied", "int8", 32), ("llama-tied", "int4", 16), ("gpt2", "int8", 128), ("deepseek-v2", "int8", 16)]
COMPUTED += [("llama-mqa", "int8", 64), ("qwen2-moe", "int8", 32), ("falcon-40b", "int4", 32), ("olmo2", "int8", 64)]


BUNDLED = Path(str(files("shardwise") / "data" / "shardling"))

WIDER: dict[str, dict[str, Any]] = {
    **{name: {"hidden_size": 128} for name in ("granite-moe", "qwen2-moe", "olmo2", "gpt-neox", "falcon-40b")},
    "gpt2": {"n_embd": 80},
    "llama-biased": {"head_dim": 16},
    "deepseek-v2": {"v_head_dim": 16},
    "llama4": {"head_dim": 16},
    "gpt-oss": {},
}
"""Changes that give families heads of 16 elements or more: biases, experts, shared ones, branches, norms over all heads."""


def held(config: Path | dict[str, Any], shares: tuple[float, ...], kind: str, group: int, dtype: str = "float32") -> Layout:
    layout = layout_of(config, shares, dtype)
    return replace(layout, model=requantised(layout.model, kind, group))


def parts(layout: Layout, rank: int, folder: Path | None) -> dict[str, torch.Tensor]:
    """A rank's weights, loaded or random; what was filled is what was planned."""
    block, tensors = load.arena(layout, rank, CPU)
    block.fill_(171)
    counts: list[int] = []
    slices = layout.slices(rank)
    if folder is None:
        load.fill_dummy(tensors, slices, counts.append, getattr(torch, layout.dtype))
    else:
        load.fill(tensors, slices, bind(layout.model, open_checkpoint(folder)), counts.append)
    assert counts == [part.bytes for part in slices]
    return tensors


def packed_of(part: Slice, tensors: dict[str, torch.Tensor]) -> list[tuple[int, Packed]]:
    """Each matrix of a quantised slice, with the index of the expert it is of, or 0."""
    tile, name = part.weight.tile, part.weight.name
    assert tile is not None
    *above, rows, columns = part.ranges
    weight, scale = tensors[name], tensors[f"{name}_scale"]
    if not above:
        return [(0, Packed(tile.kind, weight, scale, len(rows), len(columns), tile.columns))]
    return [
        (index, Packed(tile.kind, weight[i], scale[i], len(rows), len(columns), tile.columns))
        for i, index in enumerate(above[0])
    ]


@pytest.mark.parametrize("name", LOADED)
def test_a_rank_holds_its_part_of_what_the_whole_is_quantised_to(name: str, checkpoint: Checkpoints) -> None:
    folder = checkpoint(name)
    tensors, seen = stored(folder), set()
    for kind, group, shares in (("int8", 32, even(1)), ("int8", 16, (3.0, 1.0, 1.0)), ("int4", 32, even(2))):
        layout = held(folder, shares, kind, group)
        bound = bind(layout.model, open_checkpoint(folder))
        for rank in range(len(shares)):
            own = parts(layout, rank, folder)
            for part in (part for part in layout.slices(rank) if part.weight.tile and not part.weight.made):
                *_, rows, columns = part.ranges
                if not rows or not columns:
                    continue
                values = whole(part.weight, bound[part.weight.name], tensors)
                size = part.weight.tile.columns
                groups = slice(columns.start // size, -(-columns.stop // size))
                for index, packed in packed_of(part, own):
                    q, scale = quantise(values[index] if values.ndim == 3 else values, kind, size)
                    found = unpack(packed)
                    assert torch.equal(found[0], q[rows.start : rows.stop, columns.start : columns.stop]), part.weight.name
                    assert torch.equal(found[1], scale[rows.start : rows.stop, groups]), part.weight.name
                    seen.add((part.weight.name.rpartition(".layers.")[2], kind, rank))
    assert len(seen) > 20


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_random_weights_are_the_dense_ones_quantised(dtype: str, checkpoint: Checkpoints) -> None:
    config = json.loads((checkpoint("llama-mqa") / "config.json").read_text())
    dense = layout_of(config, even(1), dtype)
    plain = parts(dense, 0, None)
    for shares in (even(1), (1.0, 2.0, 1.0)):
        layout = held(config, shares, "int8", 16, dtype)
        for rank in range(len(shares)):
            own = parts(layout, rank, None)
            for part in layout.slices(rank):
                box = tuple(slice(r.start, r.stop) for r in part.ranges)
                if part.weight.tile is None:
                    assert torch.equal(own[part.weight.name], plain[part.weight.name][box])
                elif not part.weight.made and all(part.ranges):
                    [(_, packed)] = packed_of(part, own)
                    want = plain[part.weight.name].float()
                    step = want.abs().amax() / 127
                    assert (dequantise(packed) - want[box]).abs().amax() <= 0.51 * step


def logits(layout: Layout, folder: Path | None) -> torch.Tensor:
    """Of a prompt in two chunks and of a token after it; and that the ranks hold what was planned, and nothing else."""
    with Group(layout, folder, context=64, chunk=32) as group:
        for rank, runner in enumerate(group.runners):
            alive = storages(runner)
            assert alive.pop(runner.arena.data_ptr())[0] == layout.arena_bytes(rank)
            alive.pop(runner.cache.arena.data_ptr(), None)
            assert sum(size for size, _ in alive.values()) < 64 * 2**10
        sequence = group.request()
        sequence.tokens[:] = [(i * 37 + 5) % 60 for i in range(24)]
        first = group.logits(sequence.take(16)), group.logits(sequence.take())
        sequence.tokens.append(11)
        return torch.cat((*first, group.logits(sequence.take())))


@pytest.mark.parametrize(("name", "kind", "group"), COMPUTED)
def test_logits_agree_at_every_degree(name: str, kind: str, group: int, checkpoint: Checkpoints) -> None:
    folder = checkpoint(name)
    dense = logits(layout_of(folder, even(1)), folder)
    one = logits(held(folder, even(1), kind, group), folder)
    off = (one - dense).norm() / dense.norm()
    # A router may choose other experts of random weights.
    most = 0.05 if kind == "int8" and name not in ("qwen2-moe", "deepseek-v2") else 0.5
    assert 1e-4 < off < most, "quantised, and still the same model"
    for shares in (even(2), (3.0, 1.0, 1.0)):
        more = logits(held(folder, shares, kind, group), folder)
        # Heads below 16 elements leave the linear after them dense. An activation that is rounded the other way, where two of
        # its sums over ranks differ in their last bit, moves a row: seldom.
        rows = ((more - one).abs() <= 2e-5 * one.abs().amax()).all(-1)
        assert rows.float().mean() >= 0.8 and (more - one).norm() <= 0.02 * one.norm()


def summed_alike(name: str, checkpoint: Checkpoints, kind: str, shares: tuple[float, ...], experts: bool = False) -> Layout:
    """A tiny model with random weights, or the bundled one, all of whose cut linears are quantised."""
    folder = BUNDLED if name == "shardling" else checkpoint(name)
    config = {**json.loads((folder / "config.json").read_text()), **WIDER.get(name, {})}
    dense = layout_of(config, shares, expert_parallel=experts)
    layout = replace(dense, model=requantised(dense.model, kind, {"int8": 64, "int4": 32}[kind]))
    assert alike(layout.model)
    return layout


@needs_compiled
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("shardling", "int4"),
        ("deepseek-v2", "int4"),
        ("qwen2-moe", "int4"),
        *((name, "int8") for name in ("shardling", *WIDER)),
    ],
)
def test_logits_are_the_same_floats_at_every_degree(
    name: str, kind: str, checkpoint: Checkpoints, figures: Callable[..., None]
) -> None:
    """Sums over ranks in float64 leave no last bit to decide how an activation is rounded to 8 bits."""
    folder = BUNDLED if name == "shardling" else None
    one, differ, places = logits(summed_alike(name, checkpoint, kind, even(1)), folder), 0, 0
    for shares in (even(2), (3.0, 1.0, 1.0), even(5)):
        more = logits(summed_alike(name, checkpoint, kind, shares), folder)
        assert (more - one).abs().amax() <= 2**-22 * one.abs().amax()
        assert torch.equal(more.argmax(-1), one.argmax(-1))
        differ, places = differ + int((more != one).any(-1).sum()), places + len(one)
    figures(f"{kind} logits, degrees against one rank", places_that_differ=differ, places=places)


@needs_compiled
def test_whole_experts_are_summed_alike(checkpoint: Checkpoints) -> None:
    one = logits(summed_alike("qwen2-moe", checkpoint, "int8", even(1)), None)
    more = logits(summed_alike("qwen2-moe", checkpoint, "int8", even(2), experts=True), None)
    assert (more - one).abs().amax() <= 2**-22 * one.abs().amax()
