"""Mixtures of experts, cut inside each expert or dealt out whole: the same logits as transformers, whoever holds what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shardwise.engine.engine import Engine
from shardwise.engine.setup import Options, resolve
from shardwise.errors import LayoutError
from shardwise.runtime.kinds import traffic_rows
from shardwise.sched.request import SamplingParams
from shardwise.spec import traffic
from shardwise.spec.moe import stacks
from tests.checkpoints import FAMILIES
from tests.group import Group, even, greedy, layout_of
from tests.parity.reference import LIMIT, NEW, Reference, Score, chunked, compare

SHARES = {"2": even(2), "3": even(3), "3:1:1": (3.0, 1.0, 1.0), "7": even(7)}
MIXTURES = ("mixtral", "qwen2-moe", "qwen3-moe", "glm4-moe-groups", "gpt-oss", "llama4", "deepseek-v2")

Checkpoints = Callable[[str], Path]


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
@pytest.mark.parametrize("name", MIXTURES)
def test_whole_experts(
    name: str,
    shares: tuple[float, ...],
    checkpoint: Checkpoints,
    references: Callable[..., list[Reference]],
    figures: Callable[..., None],
) -> None:
    """Uneven counts, and ranks that hold no expert at all; also held to its bytes and its calls."""
    folder, wanted, score = checkpoint(name), references(name), Score()
    layout = layout_of(folder, shares, expert_parallel=True)
    with Group(layout, folder, sequences=len(wanted)) as group:
        for rank, runner in enumerate(group.runners):
            assert runner.arena.nbytes == layout.arena_bytes(rank)
        compare(group, wanted, score)
        chunked(group, group.request(0), wanted[1], 11, score)
        for comm in group.comms:
            comm.calls.clear()
        request = group.request(0)
        request.tokens[:] = range(3, 30)
        item, draw = request.take(drawn=True), greedy(0)
        group.results(group.step(item), draw)
        calls = traffic.of(layout.model, layout, 27, traffic_rows((item,), (draw,), layout.model.vocab))
        assert all(comm.calls == list(calls) for comm in group.comms)
    figures(f"whole experts {name}", worst=score.worst, tokens=score.tokens, ties=score.ties)
    assert score.worst <= LIMIT and score.ties == 0


@pytest.mark.parametrize("name", MIXTURES)
def test_every_expert_is_on_one_rank(name: str) -> None:
    layout = layout_of(FAMILIES[name], (1.0, 2.0, 1.0), expert_parallel=True)
    for linear in stacks(layout.model):
        assert linear.experts is not None
        spans = [layout.span(linear.experts, layout.mesh.coords(rank)) for rank in range(3)]
        assert [i for span in spans for i in span] == list(range(linear.experts.size))
        inner = linear.out if linear.out.cut else linear.inp
        assert layout.span(inner, layout.mesh.coords(1)) == range(inner.size)


@pytest.mark.parametrize("expert_parallel", [False, True])
@pytest.mark.parametrize("name", MIXTURES)
def test_company_changes_nothing(name: str, expert_parallel: bool, checkpoint: Checkpoints) -> None:
    """A sequence's logits are the same alone and among others that go to other experts."""
    folder = checkpoint(name)
    with Group(layout_of(folder, even(3), expert_parallel=expert_parallel), folder, sequences=3) as group:
        alone, found = group.request(0), group.request(0)
        alone.tokens[:] = found.tokens[:] = range(5, 25)
        want = group.logits(alone.take())
        others = [group.request(1), group.request(2)]
        for i, other in enumerate(others):
            other.tokens[:] = range(40 + i, 70 + i)
        parts = group.logits(others[0].take(), found.take(), others[1].take()).split([30, 20, 30])
    # Not to the last bit: a product of more rows may sum its columns in another order.
    torch.testing.assert_close(parts[1], want, rtol=1e-5, atol=1e-5)


def test_rank_processes(checkpoint: Checkpoints, references: Callable[..., list[Reference]]) -> None:
    """As `shardwise generate -tp 3 --enable-expert-parallel` runs it: five experts over three processes."""
    options = Options(str(checkpoint("mixtral")), tp=3, expert_parallel=True, dtype="float32", device="cpu", threads=1)
    params = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    with Engine(resolve(options), "processes") as engine:
        assert [ready.weight_bytes for ready in engine.ranks.ready] == [engine.setup.layout.arena_bytes(i) for i in range(3)]
        for want in references("mixtral"):
            assert tuple(event.chosen.token for event in engine.generate(want.prompt, params)) == want.tokens[:16]


def test_models_without_experts_are_refused(checkpoint: Checkpoints) -> None:
    with pytest.raises(LayoutError, match=r"this model \(llama\) has none; without --enable-expert-parallel it works"):
        resolve(Options(str(checkpoint("llama")), tp=2, expert_parallel=True, device="cpu"))


@pytest.mark.parametrize("expert_parallel", [False, True])
@pytest.mark.parametrize("name", ["gpt-oss", "llama4"])
def test_the_engine_leaves_windows_and_chunks(
    name: str, expert_parallel: bool, checkpoint: Checkpoints, references: Callable[..., list[Reference]]
) -> None:
    """Pages that no later query sees are used again; both prompts run twice, so what they share is right as well."""
    options = Options(str(checkpoint(name)), tp=3, expert_parallel=expert_parallel, dtype="float32", device="cpu", threads=1)
    params = SamplingParams(temperature=0.0, max_tokens=NEW, ignore_eos=True)
    with Engine(resolve(options), "threads") as engine:
        for want in references(name) * 2:
            assert tuple(event.chosen.token for event in engine.generate(want.prompt, params)) == want.tokens
