"""All ranks of a layout as threads of the test, with every rank's runner, its calls and its logits at hand."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch

from shardwise.comm.solo import Recording
from shardwise.comm.threads import threads
from shardwise.engine.setup import computed
from shardwise.nn.batch import Rank
from shardwise.runtime.limits import Buckets, Limits
from shardwise.runtime.opening import kernels_of
from shardwise.runtime.runner import Runner
from shardwise.runtime.weights import Weights, origin_of
from shardwise.sched.step import Draw, Item, Pages, Result, Step
from shardwise.spec.checkpoint import read_json
from shardwise.spec.config import read_model
from shardwise.spec.layout import PAGE_TOKENS, Layout, Shares
from shardwise.spec.mesh import Mesh
from shardwise.spec.model import ropes

T = TypeVar("T")


def greedy(sequence: int = 0) -> Draw:
    return Draw(sequence, temperature=0.0, seed=0)


def layout_of(
    config: Path | dict[str, Any], shares: Sequence[float], dtype: str = "float32", *, expert_parallel: bool = False
) -> Layout:
    """The layout of a checkpoint's folder, or of a config, over as many ranks as there are shares."""
    values = read_json(config / "config.json") if isinstance(config, Path) else config
    layout = Layout(read_model(values), Mesh(tp=len(shares)), Shares.of(shares), dtype, dtype, expert_parallel)
    return computed(layout, "cpu")


def even(degree: int) -> tuple[float, ...]:
    return (1.0,) * degree


class Group:
    """A context manager. `folder` None means random weights; `sequences` of up to `context` tokens have pages."""

    def __init__(
        self,
        layout: Layout,
        folder: Path | None,
        *,
        context: int = 128,
        chunk: int = 64,
        sequences: int = 1,
        buckets: Buckets | None = None,
    ) -> None:
        self.layout, self.sequences = layout, sequences
        own = layout.kv_pages(context, chunk)
        self.pages = tuple(1 + count * sequences for count in own)  # one is SCRATCH
        limits = Limits(context * sequences, 2 * sequences, own)
        size = layout.mesh.size
        self.comms = [Recording(comm) for comm in threads(size, deadline_s=60)]
        self.pool = ThreadPoolExecutor(size)
        self.steps = 0
        origin = origin_of(layout, folder)
        dtypes = getattr(torch, layout.compute_dtype), getattr(torch, layout.kv_dtype)

        def progress(count: int) -> None:
            """Nobody watches."""

        def build(rank: int) -> Runner:
            device = torch.device("cpu")
            own = Rank(layout, rank, self.comms[rank], device, *dtypes, kernels_of(layout, device, 1))
            weights = Weights(layout, rank, device, origin, progress)
            return Runner(own, weights, self.pages, limits, buckets)

        self.runners: list[Runner] = list(self.pool.map(build, range(size)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for comm in self.comms:
            comm.close()
        self.pool.shutdown()

    def each(self, work: Callable[[Runner], T]) -> list[T]:
        """work(runner) on every rank's thread at once. A rank that fails leaves, so that its peers do not wait for it."""

        def guarded(rank: int) -> T:
            try:
                return work(self.runners[rank])
            except BaseException:
                self.comms[rank].close()
                raise

        futures = [self.pool.submit(guarded, rank) for rank in range(len(self.runners))]
        return [future.result() for future in futures]

    def step(self, *items: Item) -> Step:
        self.steps += 1
        return Step(self.steps, items)

    def logits(self, *items: Item) -> torch.Tensor:
        """One step; its logits, which every rank must hold to the last bit."""
        step = self.step(*items)
        first, *others = self.each(lambda runner: runner.logits(step))
        assert all(torch.allclose(first, other, rtol=0, atol=0, equal_nan=True) for other in others), (
            "the ranks hold unlike logits"
        )
        return first

    def results(self, step: Step, *draws: Draw) -> tuple[Result, ...]:
        """What the lead rank answers to a step; the others answer with nothing."""

        def both(runner: Runner) -> tuple[Result, ...]:
            runner.forward(step)
            return runner.sample(step.number, draws)

        lead, *others = self.each(both)
        assert others == [()] * len(others)
        return lead

    def request(self, index: int = 0) -> Request:
        """Sequence `index` of the group, with pages of its own in scrambled order, as after hours of serving."""
        ids = []
        for g, count in enumerate(self.pages):
            own = (count - 1) // self.sequences
            ids.append(tuple(random.Random(g).sample(range(1, count), count - 1)[index * own : (index + 1) * own]))
        return Request(self.layout, index, tuple(ids))


@dataclass
class Request:
    """What an engine keeps of a request: its tokens, how many are computed, how many there were when that was done, and its
    pages (a ring where there is a window)."""

    layout: Layout
    index: int
    ids: tuple[tuple[int, ...], ...]
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    known: int = 0

    def take(self, count: int | None = None, *, drawn: bool = False, wants: int | None = None) -> Item:
        """The next `count` tokens not yet computed (None: all) as an item. It draws the token after them, if `drawn`; else the
        logits of the last `wants` are wanted, by default of all of them."""
        ends = [rope.boundary for rope in ropes(self.layout.model) if rope.long and rope.boundary]
        if any(self.known <= end < len(self.tokens) for end in ends):
            self.computed = 0  # a long sequence turns all its keys by other angles than a short one
        start, self.known = self.computed, len(self.tokens)
        stop = len(self.tokens) if count is None else min(start + count, len(self.tokens))
        self.computed = stop
        pages = tuple(self._pages(g, start, stop) for g in range(len(self.ids)))
        new = tuple(self.tokens[start:stop])
        targets = (0,) * ((0 if drawn else len(new)) if wants is None else wants)
        return Item(self.index, new, start, len(self.tokens), pages, targets=targets, drawn=(self.index,) if drawn else ())

    def _pages(self, group: int, start: int, stop: int) -> Pages:
        window, ids = self.layout.cache[group].window, self.ids[group]
        first = 0 if window is None else max(0, start - window + 1) // PAGE_TOKENS
        places = range(first, -(-stop // PAGE_TOKENS))
        assert len(places) <= len(ids)
        return Pages(first * PAGE_TOKENS, tuple(ids[place % len(ids)] for place in places))
