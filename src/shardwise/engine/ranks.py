"""All ranks together, behind one small protocol: a forward, how to sample it, its results. Three ways to run them.

Processes on this host (the rule, `process_ranks`), threads in this process (`thread_ranks`), or torchrun's (`torchrun`).
"""

from __future__ import annotations

import json
import select
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from shardwise.comm.protocol import DEADLINE_S
from shardwise.engine.incident import Incident
from shardwise.engine.setup import Setup
from shardwise.runtime import wire
from shardwise.runtime.limits import Limits
from shardwise.sched.step import Draw, Result, Step

Progress = Callable[[int, int], None]
"""Called with (rank, bytes of weights that it has put in place since the last call)."""


Done = tuple[int, tuple[Result, ...]]
"""A step's number and what the lead rank made of it."""


@dataclass(frozen=True, slots=True)
class Formed:
    """The ranks form a group anew, and hold nothing of what was computed: they run `setup` now. `incident`: what led to it,
    None where it was asked for. `failed`: the error of a step that led to it and left all processes as they were."""

    setup: Setup
    ready: Sequence[wire.Ready]
    incident: Incident | None
    failed: str | None = None


class Ranks(Protocol):
    """A started group of ranks. One thread at a time uses it."""

    @property
    def whole(self) -> bool:
        """Whether steps are of use now: otherwise `wait` gives a Formed before they are."""
        ...

    def forward(self, step: Step) -> None:
        """Starts the forward of a step, after those that were started before."""
        ...

    def sample(self, number: int, draws: Sequence[Draw]) -> None:
        """Says how the tokens of the oldest step that was not told yet are drawn, one draw for each in its items."""
        ...

    def wait(self, wake: int) -> Done | Formed | None:
        """The results of the oldest step, waiting for them; None as soon as descriptor `wake` can be read, or where there is
        something to say of ranks that are not whole. Raises the cause where a rank failed or is gone for good."""
        ...

    def logits(self, step: Step) -> Iterator[wire.Rows]:
        """Instead of forward, sample and wait, and with nothing else under way: the logits of all rows of all items, in order.
        To be read to the end. Raises the cause where a rank failed or is gone."""
        ...

    @property
    def ready(self) -> Sequence[wire.Ready]:
        """What each rank reported when it was ready."""
        ...

    def close(self) -> None:
        """Ends all ranks; nothing of them is left."""
        ...


def first_readable(*descriptors: int) -> int:
    """The first of the descriptors that can be read, waiting for one. (`select.select` takes none above 1023.)"""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    ready = dict(poll.poll())
    return next(descriptor for descriptor in descriptors if descriptor in ready)


def start_message(setup: Setup, rank: int, epoch: int = 0, rendezvous: str = "") -> wire.Start:
    """Everything that rank `rank` of `setup` needs to know, in the group of `epoch`."""
    layout = setup.layout
    shares = (layout.shares.attention, layout.shares.mlp, layout.shares.vocab)
    return wire.Start(
        rank=rank,
        config=json.dumps(setup.config),
        folder=str(setup.folder) if setup.load_format == "auto" else None,
        tp=layout.mesh.tp,
        shares=shares,
        expert_parallel=layout.expert_parallel,
        dtype=layout.dtype,
        kv_dtype=layout.kv_dtype,
        activations=layout.activations,
        device=setup.device,
        pages=setup.pages,
        limits=Limits(setup.limits.tokens, setup.limits.sequences, setup.sequence_pages),
        threads=setup.threads,
        epoch=epoch,
        rendezvous=rendezvous,
        deadline_s=DEADLINE_S,
        memory=setup.memory,
        quantization=(setup.quantization.kind, setup.quantization.size) if setup.quantization else None,
        cores=setup.cores,
        crowded=setup.crowded is not None,
    )
