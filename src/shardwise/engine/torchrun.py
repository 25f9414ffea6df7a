"""Ranks that torchrun started: `torchrun --nproc-per-node 3 -m shardwise generate ...`.

Rank 0 runs the command line and is the lead rank; the others follow it. Messages go through torchrun's own key-value store,
as the same msgpack that other ranks get by socket; torchrun ends all processes when one of them fails.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from shardwise.comm.protocol import DEADLINE_S
from shardwise.engine.ranks import Done, Progress, first_readable, start_message
from shardwise.engine.setup import Setup
from shardwise.env import Torchrun
from shardwise.errors import ShardwiseError, UserError
from shardwise.runtime import wire
from shardwise.sched.step import Draw, Step

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

    from shardwise.runtime.runner import Runner

IDLE = timedelta(hours=24)
"""How long a follower waits for the next step; torchrun ends it earlier if the lead rank is gone."""


class TorchrunRanks:
    """The lead rank's end: it computes its own part and posts every step for the others."""

    def __init__(self, setup: Setup, place: Torchrun, progress: Progress | None = None) -> None:
        if setup.layout.mesh.size != place.size:
            raise UserError(
                f"torchrun started {place.size} processes for -tp {setup.layout.mesh.size}; leave -tp out, or make them equal"
            )
        self.whole = True  # they are never mended
        self._place = place
        self._store = _store(place)
        self._posted = self._deleted = self._last = 0
        self._done: deque[Done] = deque()
        start = start_message(setup, 0)
        self._post(start)
        self._runner = _open(start, place, self._store, progress)
        from shardwise.runtime.worker import ready

        self.ready: Sequence[wire.Ready] = [ready(self._runner)]

    def forward(self, step: Step) -> None:
        self._forget()
        self._post(wire.Forward(step))
        self._runner.forward(step)

    def sample(self, number: int, draws: Sequence[Draw]) -> None:
        for body in wire.encode_sample(number, tuple(draws)):
            self._post_encoded(body)
        self._done.append((number, self._runner.sample(number, tuple(draws))))

    def wait(self, wake: int) -> Done | None:
        """This process is itself the lead rank: what was sampled is done, and only `wake` is waited for."""
        if self._done:
            return self._done.popleft()
        first_readable(wake)
        return None

    def logits(self, step: Step) -> Iterator[wire.Rows]:
        from shardwise.runtime.worker import rows_of

        self._forget()
        self._post(wire.Logits(step))
        yield from rows_of(self._runner, step)

    def _forget(self) -> None:
        """Takes away what everybody has read. A forward is a collective: when the last one is done, that is all before it."""
        for number in range(self._deleted, self._last):
            self._store.delete_key(f"message/{number}")
        self._deleted, self._last = self._last, self._posted

    def _post(self, message: wire.Message) -> None:
        self._post_encoded(wire.encode(message))

    def _post_encoded(self, body: bytes) -> None:
        # The stubs ask for text; the store takes bytes, and gives bytes back.
        self._store.set(f"message/{self._posted}", body)  # type: ignore[arg-type]
        self._posted += 1

    def close(self) -> None:
        """Tells the followers to end. Never raises: it also runs when they are gone."""
        try:
            self._post(wire.Stop())
        except RuntimeError as error:
            sys.stderr.write(f"rank 0: the other ranks were not told to end: {error}\n")


def follow(place: Torchrun) -> None:
    """A follower's life: start as told, then compute what is posted until told to stop."""
    import msgspec

    from shardwise.runtime.worker import rows_of

    # It holds nothing that could be lost. Python's own handlers would wait for the store's long call to return.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    store = _store(place)
    runner: Runner | None = None
    number = 0
    while True:
        store.wait([f"message/{number}"], IDLE)
        message = wire.decode(store.get(f"message/{number}"))
        number += 1
        if isinstance(message, wire.Start):
            runner = _open(msgspec.structs.replace(message, rank=place.rank), place, store, None)
        elif isinstance(message, wire.Forward) and runner is not None:
            runner.forward(message.step)
        elif isinstance(message, wire.Draws) and runner is not None:
            runner.early(message.draws)
        elif isinstance(message, wire.Sample) and runner is not None:
            runner.sample(message.number, message.draws)
        elif isinstance(message, wire.Logits) and runner is not None:
            for _ in rows_of(runner, message.step):
                pass
        elif isinstance(message, wire.Stop):
            # Not a return: taking the process group down in order would wait for peers that may be gone.
            sys.stdout.flush()
            os._exit(0)
        else:
            raise ShardwiseError(f"rank {place.rank}: {type(message).__name__} was not expected here")


def _store(place: Torchrun) -> Store:
    """torchrun's store, under a name of our own for this restart."""
    if place.local_size != place.size:
        raise UserError(
            f"torchrun started {place.local_size} of {place.size} processes on this host: ranks on several hosts are not "
            "supported yet; start all of them on one"
        )
    from shardwise.comm.stores import tcp_store

    return tcp_store(place.host, place.port, f"shardwise/{place.restart}", DEADLINE_S)


def _open(start: wire.Start, place: Torchrun, store: Store, progress: Progress | None) -> Runner:
    """Joins the group and loads, as a rank process does."""
    import torch

    from shardwise.comm import torch as backend
    from shardwise.comm.protocol import Comm
    from shardwise.comm.solo import Solo
    from shardwise.runtime.opening import device_of, open_runner
    from shardwise.runtime.worker import keep_to

    keep_to(start)
    torch.set_num_threads(start.threads)
    comm: Comm = Solo()
    if place.size > 1 and start.device == "cuda":
        comm = backend.nccl(store, place.rank, place.size, deadline_s=DEADLINE_S, device=device_of(start))
    elif place.size > 1:
        comm = backend.gloo(store, place.rank, place.size, deadline_s=DEADLINE_S)
    return open_runner(start, comm, lambda count: progress(place.rank, count) if progress else None)
