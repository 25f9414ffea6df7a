"""Whole runs on tiny checkpoints: the same at every degree and as transformers; and what is wrong is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shardwise.engine.setup import Options, Setup
from shardwise.engine.thread_ranks import ThreadRanks
from shardwise.errors import CapacityError, LayoutError, RankLost, RequestError, ShardwiseError, UserError
from shardwise.verify.drive import Advance
from shardwise.verify.peer import Transformers
from shardwise.verify.run import Plan, Report
from shardwise.verify.trace import Text, Trace
from shardwise.verify.verdict import tolerance

Verify = Callable[..., Report]
Checkpoints = Callable[[str], Path]


class Elsewhere(Transformers):
    """transformers, but of the checkpoint in another folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def traces(self, setup: Setup, texts: Sequence[Text], limit: int, stride: int, advance: Advance) -> list[Trace]:
        return super().traces(replace(setup, folder=self._folder), texts, limit, stride, advance)


def outcomes(report: Report) -> list[str]:
    return [row.outcome for row in report.rows]


@pytest.mark.parametrize("name", ["llama", "mistral-window", "qwen3-moe", "phi3-longrope"])
def test_degrees_are_the_same(name: str, verify: Verify, figures: Callable[..., None]) -> None:
    """Windows, mixtures, and angles that turn at 32 tokens; against the first degree."""
    report = verify(name, (1, 2, 3, 5))
    assert outcomes(report) == ["reference", *["same up to rounding"] * 3]
    assert report.code == 0 and report.stride == 1
    for row in report.rows[1:]:
        found = row.comparison
        assert found is not None and found.worst_rel is not None and found.worst_abs is not None
        assert found.rows == found.scored == sum(len(text.ids) + report.limit - 1 for text in report.texts)
        assert found.tokens == found.equal == report.limit * len(report.texts)
        assert 0 < found.worst_rel < 1e-5
        figures("verify, degrees against the first", worst=found.worst_rel, tokens=found.tokens)


def test_against_transformers(verify: Verify, figures: Callable[..., None]) -> None:
    for name in ("llama", "gpt2", "llama-dynamic", "deepseek-v3"):
        report = verify(name, (1, 3), Transformers(), limit=8)
        assert outcomes(report) == ["reference", "same up to rounding", "same up to rounding"], report.verdict
        assert report.rows[0].name.startswith("transformers 5.")
        for row in report.rows[1:]:
            assert row.comparison is not None and row.comparison.worst_rel is not None
            assert row.comparison.equal == row.comparison.tokens == 8 * len(report.texts)
            figures("verify, against transformers", worst=row.comparison.worst_rel, tokens=row.comparison.tokens)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits(dtype: str, verify: Verify, figures: Callable[..., None]) -> None:
    report = verify("llama", (1, 3), Transformers(), dtype=dtype)
    assert report.dtype == dtype
    assert outcomes(report) == ["reference", "same up to rounding", "same up to rounding"]
    for row in report.rows[1:]:
        assert row.comparison is not None and row.comparison.worst_rel is not None
        figures(f"verify, {dtype} against transformers", worst=row.comparison.worst_rel)


def test_quantised_weights(verify: Verify) -> None:
    """Held to what activations of 8 bits may do, and never against what a checkpoint holds."""
    report = verify("llama", (1, 3), quantization="int8")
    assert outcomes(report)[0] == "reference" and outcomes(report)[1] in ("same", "same up to rounding"), report.verdict
    assert "int8 weights: activations are rounded to 8 bits, not alike at every degree" in report.notes
    with pytest.raises(UserError, match="leave out --quantization, or --against transformers"):
        verify("llama", (1, 3), Transformers(), quantization="int8")


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantised_weights_whose_sums_are_all_wide(kind: str, verify: Verify, figures: Callable[..., None]) -> None:
    """Held to what float32 may do, at any degree and uneven."""
    report = verify("qwen3", (1, 2, 3, 5), quantization=kind, shares=(3.0, 1.0, 1.0))
    assert outcomes(report)[0] == "reference" and report.code == 0, report.verdict
    assert report.tolerance.logits == tolerance("float32", 2, routed=False).logits
    assert not any("activations" in note for note in report.notes)
    for row in report.rows[1:]:
        found = row.comparison
        assert found is not None and found.worst_rel is not None and found.equal == found.tokens > 0
        assert found.worst_rel < 2e-6 and found.strays == 0
        figures(f"verify, {kind}, degrees against the first", worst=found.worst_rel, tokens=found.tokens)


def test_the_same_to_the_last_bit(verify: Verify) -> None:
    """A rank that holds all but nothing leaves the other's sums as they are."""
    assert outcomes(verify("llama", (1, 2), shares=(1.0, 1e-9))) == ["reference", "same"]


def test_whole_experts(verify: Verify) -> None:
    """Dealt out to three ranks, unevenly; held against one rank that has them all."""
    assert outcomes(verify("qwen3-moe", (1, 3), expert_parallel=True)) == ["reference", "same up to rounding"]
    with pytest.raises(LayoutError, match="expert"):
        verify("llama", (1, 2), expert_parallel=True)


def test_uneven_shares(verify: Verify) -> None:
    report = verify("llama", (1, 2, 3), shares=(3.0, 1.0, 1.0))
    assert [row.name for row in report.rows] == ["-tp 1", "-tp 2", "-tp 3 -ts 3,1,1"]
    assert report.code == 0


# --- what is wrong ----------------------------------------------------------------------------------------------------


def disturbed(folder: Path, into: Path, name: str, by: float) -> Path:
    """The checkpoint with one element of one tensor changed."""
    shutil.copytree(folder, into)
    stored = load_file(into / "model.safetensors")
    stored[name].view(-1)[7] += by
    save_file(stored, into / "model.safetensors", {"format": "pt"})
    return into


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.down_proj.weight", "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"]
)
def test_one_weight_disturbed(name: str, verify: Verify, checkpoint: Checkpoints, tmp_path: Path) -> None:
    folder = disturbed(checkpoint("llama"), tmp_path / "other", name, 0.05)
    report = verify("llama", (1, 2), Elsewhere(folder))
    assert outcomes(report) == ["reference", "differs", "differs"]
    assert report.code == 1
    assert "rounding may do 0.0001" in report.rows[1].reason
    assert report.verdict.startswith("-tp 1, -tp 2: not the same as transformers")


def test_one_expert_of_a_mixture_disturbed(verify: Verify, checkpoint: Checkpoints, tmp_path: Path) -> None:
    """Only some tokens go there: more than those that a near tie of the router sends elsewhere."""
    stored = load_file(checkpoint("qwen3-moe") / "model.safetensors")
    name = next(key for key in sorted(stored) if "experts" in key and "down" in key)
    folder = disturbed(checkpoint("qwen3-moe"), tmp_path / "other", name, 1.0)
    assert outcomes(verify("qwen3-moe", (2,), Elsewhere(folder))) == ["reference", "differs"]


def test_sixteen_bits_hide_no_wrong_model(verify: Verify, checkpoint: Checkpoints, tmp_path: Path) -> None:
    stored = load_file(checkpoint("llama") / "model.safetensors")
    shutil.copytree(checkpoint("llama"), tmp_path / "other")
    stored["model.layers.1.mlp.up_proj.weight"][:20] *= -1
    save_file(stored, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    report = verify("llama", (2,), Elsewhere(tmp_path / "other"), dtype="bfloat16")
    assert outcomes(report) == ["reference", "differs"]
    found = report.rows[1].comparison
    assert found is not None and found.first is not None and not found.first.tie


def test_infinite_logits(verify: Verify, checkpoint: Checkpoints, tmp_path: Path) -> None:
    folder = disturbed(checkpoint("llama"), tmp_path / "nan", "model.norm.weight", float("nan"))
    report = verify(folder, (1, 2))
    assert outcomes(report) == ["reference", "differs"]
    assert "are not finite" in report.rows[1].reason


# --- degrees that do not run, and prompts -----------------------------------------------------------------------------


def test_a_degree_above_the_heads_is_a_row(verify: Verify) -> None:
    report = verify("llama", (1, 2, 9))
    assert outcomes(report) == ["reference", "same up to rounding", "refused"]
    assert "above the 8 query heads" in report.rows[2].reason
    assert report.code == 2 and "not run: -tp 9" in report.verdict


def test_degrees_that_leave_nothing_to_compare(verify: Verify) -> None:
    with pytest.raises(UserError, match=r"nothing to hold -tp 1 against: .*-tp 9: .*above the 8 query heads"):
        verify("llama", (1, 9))
    with pytest.raises(LayoutError, match="above the 8 query heads"):
        verify("llama", (9,), Transformers())


def test_a_degree_that_fails_is_a_row(verify: Verify) -> None:
    """The first that runs is what the others are held against."""

    def start(setup: Setup) -> ThreadRanks:
        degree = setup.layout.mesh.tp
        if degree == 1:
            raise CapacityError("rank 0 needs more than there is")
        if degree == 3:
            raise RankLost(2, "load", "killed")
        return ThreadRanks(setup)

    report = verify("llama", (1, 2, 3, 4), start=start)
    assert outcomes(report) == ["refused", "reference", "failed", "same up to rounding"]
    assert report.rows[2].reason == "rank 2 was lost during load: killed"
    assert report.code == 1
    assert report.verdict == "-tp 3: not the same as -tp 2; not run: -tp 1"
    with pytest.raises(ShardwiseError, match=r"nothing could be compared: -tp 1: rank 0 needs .*; -tp 3: rank 2 was lost"):
        verify("llama", (1, 3), start=start)


def test_too_little_memory(verify: Verify) -> None:
    with pytest.raises(CapacityError, match="--memory allows"):
        verify("llama", (1, 2), memory=1000)


def test_random_weights(verify: Verify, checkpoint: Checkpoints, tmp_path: Path) -> None:
    """The config alone is enough; there is nothing that transformers could load."""
    shutil.copy(checkpoint("llama") / "config.json", tmp_path)
    report = verify(tmp_path, (1, 2), load_format="dummy")
    assert outcomes(report) == ["reference", "same up to rounding"]
    assert report.notes[0] == "the model has no tokenizer: the prompts are random token ids"
    with pytest.raises(UserError, match="leave out --load-format dummy"):
        verify(tmp_path, (1, 2), Transformers(), load_format="dummy")


def test_prompts_of_a_file(verify: Verify, tmp_path: Path) -> None:
    """Ids as they are; more texts than go side by side, one of a single token, one that is clipped to the context."""
    lines = [{"prompt_token_ids": [3 + i, *range(5, 9 + 2 * i)]} for i in range(10)]
    lines += [{"prompt_token_ids": [7]}, {"prompt_token_ids": [11] * 500}]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    report = verify("llama", (1, 2), prompts=path)
    assert [len(text.ids) for text in report.texts] == [*range(5, 25, 2), 1, 128 - 6]
    assert report.code == 0
    assert "1 of 12 prompts are clipped, so that they fit the context of 128" in report.notes
    found = report.rows[1].comparison
    assert found is not None and found.tokens == found.equal == 12 * 6


def test_prompts_that_cannot_be(verify: Verify, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt_token_ids": [3, 131]}')
    with pytest.raises(RequestError, match="line 1: token id 131 is not in this model's vocabulary of 131"):
        verify("llama", prompts=path)
    with pytest.raises(RequestError, match="--max-tokens 128 leaves no room for a prompt in the context of 128"):
        verify("llama", limit=128)


def test_shares_are_for_their_own_degree() -> None:
    plan = Plan(Options("x", shares=(2.0, 1.0)), (1, 2, 3), 4)
    assert [plan.at(degree).shares for degree in (1, 2, 3)] == [None, (2.0, 1.0), None]
    assert [plan.at(degree).tp for degree in (1, 2, 3)] == [1, 2, 3]


def test_torch_is_left_with_the_memory_it_had(verify: Verify) -> None:
    """transformers' model is gone before the ranks of the first degree start."""
    import gc
    import weakref

    seen: list[weakref.ref[torch.nn.Module]] = []

    class Counted(Transformers):
        def _load(self, setup: Setup) -> torch.nn.Module:
            model: torch.nn.Module = super()._load(setup)
            seen.append(weakref.ref(model))
            return model

        def traces(self, setup: Setup, texts: Sequence[Text], limit: int, stride: int, advance: Advance) -> list[Trace]:
            found = super().traces(setup, texts, limit, stride, advance)
            gc.collect()
            assert [model() for model in seen] == [None]
            return found

    assert verify("llama", (2,), Counted()).code == 0 and len(seen) == 1
