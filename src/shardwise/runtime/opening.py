"""From a start message to a rank that waits for steps: the same way for processes, threads and torchrun."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from shardwise import env, native
from shardwise.comm.protocol import Comm
from shardwise.comm.ticking import Silent, Ticking, Ticks
from shardwise.errors import UserError
from shardwise.nn.batch import Rank
from shardwise.nn.kernels.kernels import Kernels
from shardwise.runtime import wire
from shardwise.runtime.load import Progress
from shardwise.runtime.runner import Runner
from shardwise.spec.binding import bind
from shardwise.spec.checkpoint import open_checkpoint
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


def open_runner(start: wire.Start, comm: Comm, progress: Progress, pulse: Ticks | None = None) -> Runner:
    """Loads this rank's part and allocates its cache; returns when every rank of the group has. `pulse` hears of it."""
    layout, device = layout_of(start), device_of(start)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    bound = bind(layout.model, open_checkpoint(Path(start.folder))) if start.folder else None
    dtypes = getattr(torch, layout.compute_dtype), getattr(torch, layout.kv_dtype)
    kernels = kernels_of(layout, device, start.threads, crowded=start.crowded)
    pulse = pulse or Silent()
    comm = comm if isinstance(pulse, Silent) else Ticking(comm, pulse)
    pulse.loading()

    def loaded(count: int) -> None:
        pulse.loading()
        progress(count)

    rank = Rank(layout, start.rank, comm, device, *dtypes, kernels, pulse)
    runner = Runner(rank, start.pages, start.limits, bound, loaded)
    comm.barrier(site="loaded")
    pulse.idle()
    return runner


def join(start: wire.Start, rendezvous: Path, shared: int) -> Comm:
    """This process's end of its group: itself alone at degree 1; on CPUs in the memory behind the descriptor `shared`, or,
    where that is not compiled or gloo is asked for, over TCP; on GPUs over NCCL. Those two meet in the folder `rendezvous`."""
    if start.tp == 1:
        from shardwise.comm.solo import Solo

        return Solo(epoch=start.epoch)
    if start.device != "cuda" and _share():
        from shardwise.comm.shm import shm

        return shm(shared, start.rank, start.tp, deadline_s=start.deadline_s, epoch=start.epoch, crowded=start.crowded)
    from shardwise.comm import torch as backend

    store = backend.file_store(rendezvous, start.tp, start.epoch)
    if start.device == "cuda":
        return backend.nccl(
            store, start.rank, start.tp, deadline_s=start.deadline_s, epoch=start.epoch, device=device_of(start)
        )
    return backend.gloo(store, start.rank, start.tp, deadline_s=start.deadline_s, epoch=start.epoch)


def _share() -> bool:
    """Whether CPU ranks talk through shared memory: equal on all of them, for they are of one installation and environment."""
    asked = env.collectives()
    if asked == "shm" and not native.available():
        raise UserError(f"{env.COLLECTIVES}=shm: there is no compiled library; add a C++ compiler, and install anew")
    return native.available() if asked is None else asked == "shm"
