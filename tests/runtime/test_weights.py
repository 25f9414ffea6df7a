"""Weights that are cut anew: to the last bit what a fresh rank loads, reading nothing that is there already."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardwise.errors import CheckpointError
from shardwise.runtime.load import Source
from shardwise.runtime.weights import Origin, Weights, kept, origin_of
from shardwise.spec.axes import BITS
from shardwise.spec.boxes import Box, intersect
from shardwise.spec.layout import Layout, Slice
from shardwise.spec.requantised import requantised
from tests.group import even, layout_of

CPU = torch.device("cpu")
Checkpoints = Callable[[str], Path]
FORMS = [("llama-tied", None), ("llama-9-3", None), ("gpt2", None), ("phi3", None), ("mixtral", None), ("deepseek-v2", None)]
FORMS += [("llama-tied", ("int8", 32)), ("llama-mqa", ("int4", 16)), ("llama-mqa", ("int8", 32)), ("gpt2", ("int4", 32))]
FORMS += [("mixtral", ("int8", 16)), ("falcon-40b", ("int4", 32)), ("gpt-oss", None), ("deepseek-v2", ("int8", 16))]

SHARES = st.one_of(
    st.integers(1, 5).map(even),
    st.lists(st.sampled_from([1e-6, 0.5, 1.0, 2.0, 3.0]), min_size=2, max_size=4).map(tuple),
)
PLACES = st.lists(
    SHARES.flatmap(lambda shares: st.tuples(st.just(shares), st.integers(0, len(shares) - 1))), min_size=2, max_size=4
)


def cut(folder: Path, form: tuple[str, int] | None, shares: tuple[float, ...], dtype: str) -> Layout:
    layout = layout_of(folder, shares, dtype)
    return replace(layout, model=requantised(layout.model, *form)) if form else layout


def fresh(layout: Layout, rank: int, folder: Path | None) -> Weights:
    return Weights(layout, rank, CPU, origin_of(layout, folder), lambda _: None)


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


class Counted:
    """A source that notes how many elements it was asked for."""

    def __init__(self, inner: Source) -> None:
        self.inner, self.elements = inner, 0

    def fill(self, tensors: Mapping[str, torch.Tensor], part: Slice, box: Box) -> None:
        self.elements += prod(len(span) for span in box)
        self.inner.fill(tensors, part, box)


@pytest.mark.parametrize("random", [False, True], ids=["checkpoint", "random"])
@pytest.mark.parametrize(("name", "form"), FORMS, ids=[f"{name}-{form[0] if form else 'dense'}" for name, form in FORMS])
def test_cut_anew_they_are_those_that_a_fresh_rank_loads(
    name: str, form: tuple[str, int] | None, random: bool, checkpoint: Checkpoints
) -> None:
    folder = checkpoint(name)

    @settings(max_examples=5 if random else 10, deadline=None, suppress_health_check=list(HealthCheck))
    @given(places=PLACES, dtype=st.sampled_from(["float32", "bfloat16"]))
    def one(places: list[tuple[tuple[float, ...], int]], dtype: str) -> None:
        whence = None if random else folder
        (shares, rank), *others = places
        held = fresh(cut(folder, form, shares, dtype), rank, whence)
        for shares, rank in others:
            layout, counts = cut(folder, form, shares, dtype), []
            held.recut(layout, rank, CPU, origin_of(layout, whence), counts.append)
            want = fresh(layout, rank, whence)
            assert held.slices == want.slices and set(held.tensors) == set(want.tensors)
            for key, tensor in want.tensors.items():
                assert raw(held.tensors[key]) == raw(tensor), f"{key}: {places}"
            assert sum(counts) == layout.weight_bytes(rank) and 0 <= held.kept_bytes <= sum(counts)

    one()


@pytest.mark.parametrize("form", [None, ("int8", 16)], ids=["dense", "int8"])
def test_what_a_rank_has_is_not_read_again(form: tuple[str, int] | None, checkpoint: Checkpoints) -> None:
    """Of four ranks one is lost: those that remain read what they lack and no more than some rows of tiles beside."""
    folder = checkpoint("qwen3")
    four, three = (cut(folder, form, even(degree), "float32") for degree in (4, 3))
    for old, new in ((0, 0), (1, 1), (3, 2)):
        held = fresh(four, old, folder)
        before = {part.weight.name: part for part in held.slices}
        with origin_of(three, folder)() as inner:
            source = Counted(inner)
            held.recut(three, new, CPU, opens(source), lambda _: None)
        lacking = rest = 0
        for part in held.slices:
            if not part.weight.made:
                common = intersect(before[part.weight.name].ranges, part.ranges)
                box = kept(before[part.weight.name], part)
                lacking += prod(map(len, part.ranges)) - prod(map(len, common))
                rest += prod(map(len, common)) - prod(map(len, box or (range(0),)))
        assert source.elements == lacking + rest
        assert rest == 0 if form is None else rest < 0.5 * lacking
        if form is None:
            bits = BITS["float32"]
            assert held.kept_bytes == three.weight_bytes(new) - lacking * bits // 8


def opens(source: Source) -> Origin:
    def opened() -> AbstractContextManager[Source]:
        return nullcontext(source)

    return opened


def nothing() -> AbstractContextManager[Source]:
    raise AssertionError("nothing is missing")


def test_the_same_place_again_is_left_as_it_is(checkpoint: Checkpoints) -> None:
    folder = checkpoint("llama-tied")
    layout = layout_of(folder, even(3))
    held = fresh(layout, 1, folder)
    arena, counts = held.arena, []
    held.recut(layout_of(folder, even(3)), 1, CPU, nothing, counts.append)
    assert held.arena is arena and sum(counts) == held.kept_bytes == layout.weight_bytes(1)


def test_a_checkpoint_that_is_gone_is_an_error_only_where_it_is_read(checkpoint: Checkpoints, tmp_path: Path) -> None:
    folder = checkpoint("llama-tied")
    wide, narrow = layout_of(folder, even(1)), layout_of(folder, even(2))
    held = fresh(wide, 0, folder)
    held.recut(narrow, 1, CPU, origin_of(narrow, tmp_path), lambda _: None)  # a part of what it has
    with pytest.raises(CheckpointError):
        held.recut(wide, 0, CPU, origin_of(wide, tmp_path), lambda _: None)


MEASURED = """
import json, sys
from pathlib import Path
import torch
from shardwise.runtime.weights import Weights, origin_of
from tests.group import even, layout_of
def resident(name):
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[name].split()[0]) * 1024
config = json.loads(sys.argv[1])
four, three = layout_of(config, even(4)), layout_of(config, even(3))
cpu = torch.device("cpu")
held = Weights(four, 1, cpu, origin_of(four, None), lambda _: None)
before = resident("VmRSS") - held.arena.nbytes
Path("/proc/self/clear_refs").write_text("5")
held.recut(three, 1, cpu, origin_of(three, None), lambda _: None)
largest = max(part.bytes for part in held.slices)
print(json.dumps([resident("VmHWM") - before, held.arena.nbytes, largest, resident("VmRSS") - before]))
"""


def test_memory_is_given_back_weight_by_weight(checkpoint: Checkpoints) -> None:
    """Most of the memory while it is cut anew: what is there afterwards, a weight, and what noise is made of."""
    config = json.loads((checkpoint("llama-tied") / "config.json").read_text())
    config |= {"hidden_size": 512, "intermediate_size": 3072, "num_hidden_layers": 24, "vocab_size": 2048}
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((f"{root}/src", root))}
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, json.dumps(config)], env=environment, check=True, capture_output=True, text=True
    )
    most, arena, largest, after = json.loads(done.stdout)
    assert arena > 120e6, "the old and the new weights together would not stand out"
    assert most < arena + largest + 32 * 2**20, (most, arena, largest)
    assert after < arena + 32 * 2**20
