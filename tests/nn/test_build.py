"""Blocks that nest: branches side by side are one sum, over ranks too, in which every bias counts once."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from shardwise.comm.solo import Recording
from shardwise.nn.batch import Rank
from shardwise.nn.build import build
from shardwise.spec import blocks
from shardwise.spec.axes import Axis
from shardwise.spec.rewrite import joined
from shardwise.spec.traffic import BRANCHES
from tests.checkpoints import FAMILIES
from tests.group import even, layout_of
from tests.nn.pieces import each, noise

HIDDEN, WIDTH = Axis(12), Axis(40, "mlp", 8)


def mlp(name: str) -> blocks.MLP:
    up, down = blocks.Linear("up", WIDTH, HIDDEN), blocks.Linear("down", HIDDEN, WIDTH, bias=True)
    return blocks.MLP(name, up=up, down=down, activation="relu")


@pytest.mark.parametrize("shares", [even(1), even(2), (3.0, 1.0, 1.0), (1e-6, 1.0, 1.0)], ids=str)
@pytest.mark.parametrize("make", [joined, lambda *branches: blocks.Sum(branches)], ids=["joined", "apart"])
def test_branches_are_summed(make: type[blocks.Sum], shares: tuple[float, ...]) -> None:
    layout = layout_of(FAMILIES["llama"], shares)
    block = make(mlp("one"), mlp("two"))
    ups, downs = {n: noise(40, 12) * i for i, n in enumerate(("one", "two"), 1)}, {n: noise(12, 40) for n in ("one", "two")}
    biases, x = {"one": noise(12) + 5, "two": noise(12) - 9}, noise(7, 12)

    def work(rank: Rank) -> tuple[torch.Tensor, list[str]]:
        own = layout.span(WIDTH, rank.at)
        tensors = {}
        for name in ups:
            tensors[f"{name}.up.weight"] = ups[name][own.start : own.stop]
            tensors[f"{name}.down.weight"] = downs[name][:, own.start : own.stop]
            tensors[f"{name}.down.bias"] = biases[name]
        comm = Recording(rank.comm)
        spied = Rank(layout, rank.index, comm, rank.device, rank.dtype, rank.kv_dtype)
        return build(block, "", spied, tensors)(x, None), [call.site for call in comm.calls]

    want = sum(functional.linear(functional.relu(x @ ups[n].t()), downs[n], biases[n]) for n in ups)
    sites = [BRANCHES] if make is joined else ["mlp_down", "mlp_down"]
    for found, calls in each(layout, work):
        assert torch.allclose(found, want, atol=1e-4)
        assert calls == (sites if len(shares) > 1 else [])
