"""What the layout predicts is what a rank holds and what it says: bytes of live storages, and calls inside the backend.

Everything is measured on live objects; the layout is asked once, for the prediction.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
import torch

from shardwise.runtime.kinds import traffic_rows
from shardwise.sched.step import Draw, Item
from shardwise.spec import traffic
from shardwise.spec.blocks import walk
from shardwise.spec.model import layer_blocks
from shardwise.spec.moe import MoE
from tests.checkpoints import FAMILIES
from tests.group import Group, even, greedy, layout_of

SHARES = [
    pytest.param(even(1), id="1"),
    pytest.param(even(2), id="2"),
    pytest.param(even(3), id="3", marks=pytest.mark.slow),
    pytest.param((3.0, 1.0, 1.0), id="3:1:1"),
    pytest.param(even(4), id="4"),
    pytest.param(even(5), id="5"),
]

SPARE_BYTES = 64 * 2**10
"""What a rank may hold besides weights and cache: rope frequencies and the like."""


TWO = ["attn_out", "mlp_down"]
LAYER_SITES = {
    **{name: ["qk_norm", *TWO] for name in ("olmo2", "olmo2-biased", "olmo3")},
    **{name: ["branches"] for name in ("gpt-neox", "falcon-7b", "falcon-40b", "falcon-11b")},
}
"""The sums over ranks of a layer, where they are not one of the attention and one of the MLP."""


def tensors(root: object) -> Iterator[tuple[str, torch.Tensor]]:
    """(where, tensor) of every tensor that can be reached from `root`, each object visited once."""
    seen: set[int] = set()
    waiting: list[tuple[str, object]] = [("", root)]
    while waiting:
        path, value = waiting.pop()
        if id(value) in seen or isinstance(value, type | types.ModuleType):
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            yield path, value
        waiting.extend((f"{path}.{name}", child) for name, child in children(value))


def children(value: object) -> Iterator[tuple[str, object]]:
    """What an object holds: items, attributes, slots, and what a function has closed over."""
    if isinstance(value, dict):
        yield from ((str(key), child) for key, child in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((str(i), child) for i, child in enumerate(value))
    elif isinstance(value, types.FunctionType):
        yield from ((f"cell{i}", cell.cell_contents) for i, cell in enumerate(value.__closure__ or ()))
    elif isinstance(value, types.MethodType):
        yield "self", value.__self__
    else:
        yield from getattr(value, "__dict__", {}).items()
        if is_dataclass(value):
            yield from ((f.name, getattr(value, f.name)) for f in fields(value))
        for kind in type(value).__mro__:
            slots = getattr(kind, "__slots__", ())
            names = (slots,) if isinstance(slots, str) else slots
            yield from ((name, getattr(value, name)) for name in names if hasattr(value, name))


def storages(root: object) -> dict[int, tuple[int, str]]:
    """Bytes of each distinct storage below `root`, by its address, with a place where it is used."""
    found: dict[int, tuple[int, str]] = {}
    for path, tensor in tensors(root):
        storage = tensor.untyped_storage()
        if storage.nbytes():
            found.setdefault(storage.data_ptr(), (storage.nbytes(), path))
    return found


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("name", FAMILIES)
def test_bytes_and_traffic(
    name: str, shares: tuple[float, ...], checkpoint: Callable[[str], Path], figures: Callable[..., None]
) -> None:
    folder = checkpoint(name)
    layout = layout_of(folder, shares)
    with Group(layout, folder, sequences=2) as group:
        kv = [layout.kv_bytes(rank, group.pages) for rank in range(len(shares))]
        arenas = [layout.arena_bytes(rank) for rank in range(len(shares))]
        check_traffic(group, name)
        spares = []
        for rank, runner in enumerate(group.runners):
            alive = storages(runner)
            weights, cache = alive.pop(runner.arena.data_ptr()), alive.pop(runner.cache.arena.data_ptr(), (0, ""))
            assert weights[0] == arenas[rank]
            assert cache[0] == kv[rank]
            spares.append(sum(size for size, _ in alive.values()))
            assert spares[-1] < SPARE_BYTES, f"rank {rank} also holds {sorted(alive.values(), reverse=True)[:5]}"
    figures("bytes besides weights and cache", most=float(max(spares)), layouts=1)


def check_traffic(group: Group, name: str) -> None:
    """Prefill of several, a chunk that draws nothing, and decode, drawn in every way: the calls of every rank, one by one."""
    layout = group.layout
    one, two = group.request(0), group.request(1)
    one.tokens[:], two.tokens[:] = range(3, 30), range(40, 49)
    check_step(group, 20 + 9, (one.take(20), two.take(drawn=True)), greedy(1))
    check_step(group, 7, (one.take(wants=0),))
    for draw in (greedy(1), Draw(1, 1.0, 7), Draw(1, 0.7, 7, min_p=0.1), Draw(1, 1.0, 7, top_p=0.9, logprobs=3)):
        two.tokens.append(5)
        check_step(group, 1, (two.take(drawn=True),), draw)
    one.tokens += range(50, 53)
    two.tokens.append(5)
    check_step(group, 4, (replace(one.take(wants=0), pool="mean"), replace(two.take(wants=0), pool="last")))
    sites = [c.site for c in group.comms[0].calls if c.op == "all_reduce" and c.site not in ("embed", "ranks")]
    mixed = [any(isinstance(node, MoE) for _, node in walk(block)) for _, block in layer_blocks(layout.model)]
    usual = [site for moe in mixed for site in ("attn_out", "moe_out" if moe else "mlp_down")]
    wanted = LAYER_SITES[name] * layout.model.layers if name in LAYER_SITES else usual
    assert sites == (wanted if layout.mesh.tp > 1 else [])


def check_step(group: Group, tokens: int, items: tuple[Item, ...], *draws: Draw) -> None:
    """The calls of one step that has `tokens` tokens."""
    for comm in group.comms:
        comm.calls.clear()
    group.results(group.step(*items), *draws)
    rows = traffic_rows(items, draws, group.layout.model.vocab)
    wanted = traffic.of(group.layout.model, group.layout, tokens, rows)
    for comm in group.comms:
        assert comm.calls == list(wanted)


def test_the_walk_finds_what_is_hidden() -> None:
    class Slotted:
        __slots__ = ("inner",)

    hidden = Slotted()
    hidden.inner = {"a": [torch.zeros(4), (lambda t: lambda: t)(torch.zeros(8))]}
    whole = torch.zeros(16)
    found = storages([hidden, whole[2:3], whole[5:]])
    assert sorted(size for size, _ in found.values()) == [16, 32, 64]
