"""On one CUDA device: the same numbers as on the CPU. Two and three ranks share the device, as threads and over gloo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from shardwise.engine.engine import Engine
from shardwise.engine.setup import Options, Setup, resolve
from shardwise.sched.request import SamplingParams

torch = pytest.importorskip("torch", reason="the ranks need torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine shows no CUDA device"),
]

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
FAMILIES = ("llama", "qwen3", "gpt2", "phi3", "mistral-window")


def setup_of(folder: Path, tp: int, device: str, dtype: str = "float32") -> Setup:
    """On `device` as named, several ranks on one card included, which `resolve` refuses to users."""
    options = Options(str(folder), tp=tp, device="cpu", dtype=dtype, threads=1)
    return replace(resolve(options), device=device)


def greedy(setup: Setup, ranks: str) -> list[int]:
    with Engine(setup, ranks) as engine:  # type: ignore[arg-type]
        params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
        return [token.chosen.token for token in engine.generate(PROMPT, params)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tp", [1, 2, 3])
def test_threads_on_one_device_agree_with_the_cpu(checkpoint: Callable[[str], Path], family: str, tp: int) -> None:
    folder = checkpoint(family)
    assert greedy(setup_of(folder, tp, "cuda:0"), "threads") == greedy(setup_of(folder, 1, "cpu"), "threads")


@pytest.mark.parametrize("tp", [2, 3])
def test_processes_over_gloo_with_cuda_tensors(checkpoint: Callable[[str], Path], tp: int) -> None:
    folder = checkpoint("llama")
    assert greedy(setup_of(folder, tp, "cuda:0"), "processes") == greedy(setup_of(folder, 1, "cpu"), "threads")


def test_resolve_finds_the_device(checkpoint: Callable[[str], Path]) -> None:
    setup = resolve(Options(str(checkpoint("llama"))))
    assert setup.device == "cuda"
    assert len(greedy(setup, "processes")) == 24


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs(checkpoint: Callable[[str], Path], dtype: str) -> None:
    folder = checkpoint("llama")
    one, two = (greedy(setup_of(folder, tp, "cuda:0", dtype), "threads") for tp in (1, 2))
    assert one[:4] == two[:4]


def test_weights_that_are_cut_anew_on_a_device_are_those_that_are_loaded(checkpoint: Callable[[str], Path]) -> None:
    from shardwise.runtime.weights import Weights, origin_of
    from tests.group import layout_of

    folder, device = checkpoint("llama-9-3"), torch.device("cuda", 0)
    first, *others = ((1.0, 1.0), 1), ((1.0, 1.0, 1.0), 1), ((1.0,), 0), ((3.0, 1.0), 0)
    layout = layout_of(folder, first[0])
    held = Weights(layout, first[1], device, origin_of(layout, folder), lambda _: None)
    for shares, rank in others:
        layout = layout_of(folder, shares)
        held.recut(layout, rank, device, origin_of(layout, folder), lambda _: None)
        want = Weights(layout, rank, device, origin_of(layout, folder), lambda _: None)
        assert held.arena.device == device
        assert all(torch.equal(held.tensors[name], tensor) for name, tensor in want.tensors.items())
