"""Loading: each rank gets its own ranges and nothing else, from any dtype and any way in which a checkpoint stores them."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from shardwise.errors import CheckpointError
from shardwise.runtime import load
from shardwise.spec.axes import Weight
from shardwise.spec.binding import Place, bind, reads
from shardwise.spec.checkpoint import open_checkpoint
from shardwise.spec.layout import ALIGN_BYTES, Layout
from tests.checkpoints import FAMILIES, build
from tests.group import even, layout_of

CPU = torch.device("cpu")
SHARES = {"1": even(1), "2": even(2), "3:1:1": (3.0, 1.0, 1.0), "5": even(5), "empty": (1.0, 1e-6, 1.0)}
Checkpoints = Callable[[str], Path]


def loaded(folder: Path, layout: Layout, rank: int) -> tuple[dict[str, torch.Tensor], int]:
    """A rank's weights and what its progress added up to."""
    _, tensors = load.arena(layout, rank, CPU)
    counts: list[int] = []
    load.fill(tensors, layout.slices(rank), bind(layout.model, open_checkpoint(folder)), counts.append)
    return tensors, sum(counts)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, as the safetensors library reads it."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


def whole(weight: Weight, place: Place, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The whole logical weight, put together from its tensors by the plainest means."""
    source = place.source
    parts = [tensors[stored.name] for stored in place.tensors]
    tensor = torch.stack(parts) if "*" in source.tensor else parts[0]
    if source.transposed:
        tensor = tensor.transpose(-1, -2)
    if source.fused:
        fused, size = source.fused, weight.axes[source.axis].size
        rows = [fused.start + i // fused.block * fused.stride + i % fused.block for i in range(size)]
        tensor = tensor.index_select(source.axis, torch.tensor(rows))
    return tensor


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
@pytest.mark.parametrize("name", ["llama-tied", "llama-biased", "llama-mqa", "gpt2", "gpt2-untied", "phi3", "qwen3", "mixtral"])
def test_every_range(name: str, shares: tuple[float, ...], checkpoint: Checkpoints) -> None:
    folder = checkpoint(name)
    layout, tensors = layout_of(folder, shares), stored(folder)
    bound = bind(layout.model, open_checkpoint(folder))
    for rank in range(len(shares)):
        own, filled = loaded(folder, layout, rank)
        slices = layout.slices(rank)
        assert set(own) == {part.weight.name for part in slices}
        assert filled == sum(part.bytes for part in slices) == layout.weight_bytes(rank)
        for part in slices:
            want = whole(part.weight, bound[part.weight.name], tensors)
            want = want[tuple(slice(r.start, r.stop) for r in part.ranges)]
            assert torch.equal(own[part.weight.name], want), part.weight.name


@pytest.mark.parametrize("name", FAMILIES)
def test_no_range_of_another_rank_is_read(name: str, checkpoint: Checkpoints) -> None:
    """The bytes that a rank copies are its slices' bytes, and over ranks every stored byte is copied."""
    folder = checkpoint(name)
    layout = layout_of(folder, (3.0, 1.0, 1.0))
    bound = bind(layout.model, open_checkpoint(folder))
    touched: dict[str, torch.Tensor] = {
        entry.name: torch.zeros(entry.shape, dtype=torch.int64) for entry in open_checkpoint(folder).tensors.values()
    }
    for rank in range(3):
        copied = 0
        for part in layout.slices(rank):
            for read in reads(part.weight, bound[part.weight.name], part.ranges):
                copied += 4 * prod(len(r) for r in read.stored)
                touched[read.tensor.name][tuple(slice(r.start, r.stop, r.step) for r in read.stored)] += 1
        assert copied == layout.weight_bytes(rank)
    for name, times in touched.items():
        # A vision tower is not read at all.
        assert (times == 0).all() if name.startswith(layout.model.foreign) else (times > 0).all(), name
    assert sum(int(times.sum()) for times in touched.values()) * 4 == sum(layout.weight_bytes(rank) for rank in range(3))


def test_what_others_hold_is_never_looked_at(checkpoint: Checkpoints, tmp_path: Path) -> None:
    """A checkpoint in which everything but one rank's ranges is NaN gives that rank the same weights."""
    folder = checkpoint("phi3")
    layout, tensors = layout_of(folder, (1.0, 2.0, 1.0)), stored(folder)
    bound = bind(layout.model, open_checkpoint(folder))
    want, _ = loaded(folder, layout, 1)
    blank = {name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()}
    for part in layout.slices(1):
        for read in reads(part.weight, bound[part.weight.name], part.ranges):
            box, name = tuple(slice(r.start, r.stop) for r in read.stored), read.tensor.name
            blank[name][box] = tensors[name][box]
    save_file(blank, tmp_path / "model.safetensors")
    found, _ = loaded(tmp_path, layout, 1)
    assert all(torch.equal(found[name], tensor) for name, tensor in want.items())
    other, _ = loaded(tmp_path, layout, 0)
    assert any(tensor.isnan().any() for tensor in other.values())


@pytest.mark.parametrize("target", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("source", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(source: torch.dtype, target: str, tmp_path: Path, checkpoint: Checkpoints) -> None:
    """Rounded once, to the nearest, as torch converts."""
    folder = checkpoint("gpt2")
    tensors = {name: tensor.to(source) for name, tensor in stored(folder).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    layout = layout_of(folder, even(2), target)
    bound = bind(layout.model, open_checkpoint(tmp_path))
    own, filled = loaded(tmp_path, layout, 1)
    assert filled == layout.weight_bytes(1)
    for part in layout.slices(1):
        want = whole(part.weight, bound[part.weight.name], tensors)[tuple(slice(r.start, r.stop) for r in part.ranges)]
        assert torch.equal(own[part.weight.name], want.to(getattr(torch, target)))


def test_checkpoints_in_several_files(tmp_path: Path, checkpoint: Checkpoints) -> None:
    folder = build(FAMILIES["phi3"], tmp_path, max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 2 and (folder / "model.safetensors.index.json").exists()
    layout = layout_of(folder, even(3))
    for rank in range(3):
        found, _ = loaded(folder, layout, rank)
        want, _ = loaded(checkpoint("phi3"), layout, rank)
        assert all(torch.equal(found[name], tensor) for name, tensor in want.items())


def renamed(folder: Path, into: Path, change: Callable[[str], str], **more: torch.Tensor) -> Path:
    save_file({change(name): tensor for name, tensor in stored(folder).items()} | more, into / "model.safetensors")
    return into


def test_a_tied_table_under_the_name_of_the_head(tmp_path: Path, checkpoint: Checkpoints) -> None:
    folder, head = checkpoint("llama-tied"), "lm_head.weight"
    renamed(folder, tmp_path, lambda name: head if name == "model.embed_tokens.weight" else name)
    layout = layout_of(folder, even(3))
    found, want = loaded(tmp_path, layout, 2)[0], loaded(folder, layout, 2)[0]
    assert torch.equal(found["model.embed_tokens.weight"], want["model.embed_tokens.weight"])


def test_gpt2_with_and_without_its_prefix(tmp_path: Path, checkpoint: Checkpoints) -> None:
    """The head of an untied one stands outside of the prefix; a tied one may state its head a second time."""
    for name in ("gpt2", "gpt2-untied"):
        folder = checkpoint(name)
        assert any(stored_name.startswith("transformer.") for stored_name in stored(folder))
        bare = renamed(folder, tmp_path, lambda stored_name: stored_name.removeprefix("transformer."))
        layout = layout_of(folder, even(2))
        found, want = loaded(bare, layout, 1)[0], loaded(folder, layout, 1)[0]
        assert all(torch.equal(found[key], tensor) for key, tensor in want.items())
    folder = checkpoint("gpt2")
    twice = renamed(folder, tmp_path, str, **{"lm_head.weight": stored(folder)["transformer.wte.weight"].clone()})
    layout = layout_of(folder, even(2))
    assert torch.equal(loaded(twice, layout, 0)[0]["wte.weight"], loaded(folder, layout, 0)[0]["wte.weight"])


def test_tensors_at_odd_offsets(tmp_path: Path, checkpoint: Checkpoints) -> None:
    """The format allows a header of any length, and so data that starts on no boundary."""
    folder = checkpoint("llama")
    raw = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.dumps(json.loads(raw[8 : 8 + size])).encode()
    header += b" " * (1 - len(header) % 2)
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + size :])
    layout = layout_of(folder, even(3))
    assert min(entry.start % 4 for entry in open_checkpoint(tmp_path).tensors.values()) == 1
    found, want = loaded(tmp_path, layout, 1)[0], loaded(folder, layout, 1)[0]
    assert all(torch.equal(found[name], tensor) for name, tensor in want.items())


def test_progress_comes_weight_by_weight(checkpoint: Checkpoints) -> None:
    folder = checkpoint("llama")
    layout, counts = layout_of(folder, even(2)), []
    _, tensors = load.arena(layout, 0, CPU)
    load.fill(tensors, layout.slices(0), bind(layout.model, open_checkpoint(folder)), counts.append)
    assert counts == [part.bytes for part in layout.slices(0)]
    counts.clear()
    load.fill_dummy(tensors, layout.slices(0), counts.append)
    assert counts == [part.bytes for part in layout.slices(0)]


def test_the_arena_is_one_block_of_aligned_views(checkpoint: Checkpoints) -> None:
    layout = layout_of(checkpoint("llama-9-3"), (3.0, 1.0, 1.0))
    for rank in range(3):
        block, tensors = load.arena(layout, rank, CPU)
        assert block.nbytes == layout.arena_bytes(rank)
        spans = []
        for tensor in tensors.values():
            assert tensor.untyped_storage().data_ptr() == block.data_ptr()
            assert (tensor.data_ptr() - block.data_ptr()) % ALIGN_BYTES == 0 or not tensor.numel()
            spans.append((tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes))
        spans.sort()
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))


# --- experts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expert_parallel", [False, True])
@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe", "glm4-moe"])
def test_experts_stored_apart_or_together(name: str, expert_parallel: bool, checkpoint: Checkpoints, tmp_path: Path) -> None:
    """As the hub has them, and as transformers 5 has them in memory: the same weights."""
    apart, together = checkpoint(name), build(FAMILIES[name], tmp_path, save_original_format=False)
    assert not any(".experts.0." in tensor for tensor in stored(together))
    layout = layout_of(apart, (3.0, 1.0, 1.0), expert_parallel=expert_parallel)
    for rank in range(3):
        want, _ = loaded(apart, layout, rank)
        found, _ = loaded(together, layout, rank)
        assert all(torch.equal(found[key], want[key]) for key in want)


def test_an_expert_that_is_not_there_is_named(checkpoint: Checkpoints, tmp_path: Path) -> None:
    tensors = stored(checkpoint("mixtral"))
    lost = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"the checkpoint lacks {re.escape(lost)}; config.json asks for it"):
        bind(layout_of(checkpoint("mixtral"), even(1)).model, open_checkpoint(tmp_path))


def test_the_text_part_of_a_multimodal_llama_4(checkpoint: Checkpoints, tmp_path: Path) -> None:
    flat = checkpoint("llama4")
    text = json.loads((flat / "config.json").read_text())
    nested = {"model_type": "llama4", "architectures": ["Llama4ForConditionalGeneration"], "text_config": text}
    tensors = {f"language_model.{name}": tensor for name, tensor in stored(flat).items()}
    save_file({**tensors, "vision_model.patch.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    want, _ = loaded(flat, layout_of(flat, even(2)), 1)
    found, _ = loaded(tmp_path, layout_of(nested, even(2)), 1)
    assert all(torch.equal(found[key], want[key]) for key in want)


# --- dummy weights ----------------------------------------------------------------------------------------------------


def dummy(config: dict[str, Any], shares: tuple[float, ...], rank: int) -> tuple[Layout, dict[str, torch.Tensor]]:
    layout = layout_of(config, shares)
    _, tensors = load.arena(layout, rank, CPU)
    load.fill_dummy(tensors, layout.slices(rank), lambda _: None)
    return layout, tensors


@pytest.mark.parametrize("name", ["llama-9-3", "llama-mqa", "gpt2", "phi3", "gpt-oss"])
def test_dummy_weights_are_a_function_of_the_logical_place(name: str, checkpoint: Checkpoints) -> None:
    folder = checkpoint(name)
    config = json.loads((folder / "config.json").read_text())
    _, all_of_it = dummy(config, even(1), 0)
    for shares in (even(2), (3.0, 1.0, 1.0), even(5)):
        for rank in range(len(shares)):
            layout, own = dummy(config, shares, rank)
            for part in layout.slices(rank):
                want = all_of_it[part.weight.name][tuple(slice(r.start, r.stop) for r in part.ranges)]
                assert torch.equal(own[part.weight.name], want), part.weight.name


def test_dummy_weights_look_like_a_fresh_model() -> None:
    config = FAMILIES["llama-biased"] | {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 2000}
    _, tensors = dummy(config, even(1), 0)
    for name, tensor in tensors.items():
        if tensor.ndim == 1:
            assert torch.equal(tensor, torch.ones_like(tensor) if name.endswith("weight") else torch.zeros_like(tensor))
        else:
            assert tensor.std().item() == pytest.approx(tensor.shape[1] ** -0.5, rel=0.05)
            assert abs(tensor.mean().item()) < 0.01
            assert len(tensor[:, 0].unique()) > 0.9 * len(tensor), "rows are not the same over and over"
    matrices = [tensor for tensor in tensors.values() if tensor.shape == (256, 256)]
    assert all(not torch.equal(a, b) for i, a in enumerate(matrices) for b in matrices[:i])


@pytest.mark.parametrize("when", ["before", "to nothing", "while it loads"])
def test_a_file_that_is_cut_short_is_named_with_its_tensor(checkpoint: Checkpoints, tmp_path: Path, when: str) -> None:
    """By somebody else, after its header was read."""
    copy = tmp_path / "model"
    shutil.copytree(checkpoint("llama"), copy)
    file = copy / "model.safetensors"
    layout = layout_of(copy, even(1))
    places, total = bind(layout.model, open_checkpoint(copy)), file.stat().st_size
    _, tensors = load.arena(layout, 0, CPU)
    counts: list[int] = []

    def cut(count: int) -> None:
        counts.append(count)
        if when == "while it loads" and len(counts) == 3:
            os.truncate(file, total // 2)

    if when != "while it loads":
        os.truncate(file, total // 2 if when == "before" else 0)
    said = r"is empty" if when == "to nothing" else rf"has {total // 2} bytes, and [\w.]+ ends at \d+: it was cut short"
    with pytest.raises(CheckpointError, match=re.escape(str(file)) + ": " + said):
        load.fill(tensors, layout.slices(0), places, cut)
    assert len(counts) >= 3 or when != "while it loads"
