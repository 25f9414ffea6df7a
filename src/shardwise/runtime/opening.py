"""From a start message to a rank that waits for steps: the same way for processes, threads and torchrun."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from shardwise.comm import memory
from shardwise.comm.protocol import Comm
from shardwise.comm.ticking import Silent, Ticking
from shardwise.comm.way import Way, way_of
from shardwise.nn.batch import Rank
from shardwise.nn.kernels.kernels import Kernels
from shardwise.runtime import wire
from shardwise.runtime.cache import PagedCache
from shardwise.runtime.load import Progress
from shardwise.runtime.pulse import open_pulse
from shardwise.runtime.runner import Runner
from shardwise.runtime.weights import Weights, origin_of
from shardwise.spec.config import read_model
from shardwise.spec.formats import Grouped
from shardwise.spec.layout import Layout, Shares
from shardwise.spec.mesh import Mesh
from shardwise.spec.requantised import quantised_as


def layout_of(start: wire.Start) -> Layout:
    """The layout that the engine resolved, made again from the same numbers."""
    form = Grouped(*start.quantization) if start.quantization else None
    model, shares = quantised_as(read_model(json.loads(start.config)), form), Shares(*start.shares)
    return Layout(model, Mesh(tp=start.tp), shares, start.dtype, start.kv_dtype, start.expert_parallel, start.activations)


def device_of(start: wire.Start) -> torch.device:
    """One rank a GPU, by rank; all CPU ranks share the CPU."""
    return torch.device("cuda", start.rank) if start.device == "cuda" else torch.device(start.device)


def kernels_of(layout: Layout, device: torch.device, threads: int, *, crowded: bool = False) -> Kernels:
    """What a rank of `layout` computes with: compiled kernels know float32 activations alone."""
    return Kernels.of(device, threads, crowded) if layout.compute_dtype == "float32" else Kernels.reference()


class Kept:
    """What a rank process keeps from one group to the next: its weights, if both are of one model, and its cache's memory."""

    def __init__(self) -> None:
        self._weights: Weights | None = None
        self._room: torch.Tensor | None = None
        self._of: object = None

    @property
    def holds(self) -> bool:
        """Whether there are weights that others can be cut of."""
        return self._weights is not None

    def weights(self, start: wire.Start, layout: Layout, device: torch.device, progress: Progress) -> Weights:
        """The weights that a message asks for: cut anew where some of this model are there, else loaded. Those of before are of
        no use any more, whatever becomes of it."""
        held, self._weights = self._weights, None
        origin, model = origin_of(layout, Path(start.folder) if start.folder else None), _model_of(start)
        if held is not None and self._of == model:
            held.recut(layout, start.rank, device, origin, progress)
        else:
            held = None  # before there are others
            held = Weights(layout, start.rank, device, origin, progress)
        self._weights, self._of = held, model
        return held

    def room(self, size: int, device: torch.device) -> torch.Tensor | None:
        """Memory of that size, if the last cache had as much; else what there was is given back."""
        if self._room is not None and (self._room.nbytes, self._room.device) != (size, device):
            self._room = None
        return self._room

    def keep(self, cache: PagedCache) -> None:
        """The cache's memory is there for the next one."""
        self._room = cache.arena


def _model_of(start: wire.Start) -> object:
    """Equal where weights are cut of the same whole, for the same kind of device."""
    return start.config, start.folder, start.dtype, start.quantization, start.device


def open_runner(start: wire.Start, comm: Comm, progress: Progress, kept: Kept | None = None) -> Runner:
    """Loads this rank's part, but for what was kept, and allocates its cache; returns when every rank of the group has."""
    layout, device = layout_of(start), device_of(start)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    pulse = comm.ticks if isinstance(comm, Ticking) else Silent()
    pulse.loading()

    def loaded(count: int) -> None:
        pulse.loading()
        progress(count)

    kept = kept or Kept()
    # The old cache goes before other weights come.
    room = kept.room(layout.kv_bytes(start.rank, start.pages), device)
    weights = kept.weights(start, layout, device, loaded)
    dtypes = getattr(torch, layout.compute_dtype), getattr(torch, layout.kv_dtype)
    kernels = kernels_of(layout, device, start.threads, crowded=start.crowded)
    rank = Rank(layout, start.rank, comm, device, *dtypes, kernels, pulse)
    runner = Runner(rank, weights, start.pages, start.limits, room=room)
    kept.keep(runner.cache)
    comm.barrier(site="loaded")
    pulse.idle()
    return runner


def join(start: wire.Start, shared: int) -> Comm:
    """This rank's end of its group, from now on with a pulse in the memory behind the descriptor `shared`: see `_joined`."""
    pulse = open_pulse(shared, start.rank, start.epoch)
    try:
        return Ticking(_joined(start, shared), pulse)
    except BaseException:
        pulse.left()
        raise


def _joined(start: wire.Start, shared: int) -> Comm:
    """This process's end of its group: itself alone at degree 1; on CPUs in the memory behind the descriptor `shared`, or over
    TCP (`way_of`); on GPUs over NCCL. Those two meet in the folder that the message names. CommError as soon as a later epoch
    is wanted of the ranks that share this memory."""
    way = way_of(start.device, start.tp)
    if way is Way.ALONE:
        from shardwise.comm.solo import Solo

        return Solo(epoch=start.epoch)
    if way is Way.SHARED:
        from shardwise.comm.shm import shm

        return shm(shared, start.rank, start.tp, deadline_s=start.deadline_s, epoch=start.epoch, crowded=start.crowded)
    from shardwise.comm import torch as backend

    store = backend.file_store(Path(start.rendezvous), start.tp, start.epoch)
    given_up = lambda: memory.wanted(shared) > start.epoch  # noqa: E731
    if way is Way.NCCL:
        device = device_of(start)
        return backend.nccl(
            store, start.rank, start.tp, deadline_s=start.deadline_s, epoch=start.epoch, device=device, given_up=given_up
        )
    return backend.gloo(store, start.rank, start.tp, deadline_s=start.deadline_s, epoch=start.epoch, given_up=given_up)
