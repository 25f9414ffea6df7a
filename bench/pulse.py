"""What a rank's pulse costs: each tick, all of a step, and decode steps of a tiny model with and without one, in alternation.

    python bench/pulse.py [--tp 2] [--layers 16] [--steps 400]

Ranks are processes that talk through shared memory. Run it alone on the machine.
"""

from __future__ import annotations

import argparse
import os
import time
from statistics import median
from timeit import repeat

import torch

from shardwise.comm.memory import anonymous
from shardwise.comm.protocol import Comm
from shardwise.comm.shm import shm
from shardwise.comm.solo import Solo
from shardwise.comm.ticking import CHOOSING, HEAD, Silent, Ticking, Ticks
from shardwise.engine.setup import computed
from shardwise.nn.batch import Rank
from shardwise.runtime.limits import Limits
from shardwise.runtime.opening import kernels_of
from shardwise.runtime.pulse import control, open_pulse, read_pulse
from shardwise.runtime.runner import Runner
from shardwise.runtime.weights import Weights, origin_of
from shardwise.sched.step import Draw, Item, Pages, Step
from shardwise.spec.config import read_model
from shardwise.spec.layout import Layout, Shares
from shardwise.spec.mesh import Mesh

CONFIG = {
    "model_type": "llama",
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
}
WARM = 20


def runner(layout: Layout, rank: int, fd: int, *, ticking: bool) -> Runner:
    """One rank; the epochs of the two kinds differ, so that they share nothing."""
    size, device = layout.mesh.size, torch.device("cpu")
    pulse: Ticks = open_pulse(fd, rank, 1) if ticking else Silent()
    comm: Comm = shm(fd, rank, size, epoch=int(ticking)) if size > 1 else Solo()
    comm = Ticking(comm, pulse) if ticking else comm
    pages = layout.kv_pages(4096, 64)
    own = Rank(layout, rank, comm, device, torch.float32, torch.float32, kernels_of(layout, device, 1), pulse)
    weights = Weights(layout, rank, device, origin_of(layout, None), lambda _: None)
    return Runner(own, weights, [1 + count for count in pages], Limits(64, 2, pages))


def measure(layout: Layout, rank: int, fd: int, steps: int) -> tuple[list[float], list[float]]:
    """Seconds of each step without a pulse, and with one."""
    runners = [runner(layout, rank, fd, ticking=ticking) for ticking in (False, True)]
    pages = tuple(Pages(0, tuple(range(1, 1 + count))) for count in layout.kv_pages(4096, 64))
    took: tuple[list[float], list[float]] = ([], [])
    for number in range(steps):
        for which in (0, 1) if number % 2 else (1, 0):
            step = Step(number, (Item(0, (7,), number, number + 1, pages, drawn=(0,)),))
            began = time.perf_counter()
            runners[which].forward(step)
            runners[which].sample(number, (Draw(0, temperature=0.0, seed=0),))
            took[which].append(time.perf_counter() - began)
    return took[0][WARM:], took[1][WARM:]


class Nothing(Solo):
    """Sums that cost nothing, so that ticks are all there is."""

    def all_reduce(
        self, x: torch.Tensor, *, site: str, out: torch.Tensor | None = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        return x


def ticks(pulse: Ticks, comm: Comm, layers: int, x: torch.Tensor) -> None:
    """All that a decode step says, where each layer has two sums."""
    pulse.step(1, 1)
    for index in range(layers):
        pulse.layer(index)
        comm.all_reduce(x, site="attn_out")
        comm.all_reduce(x, site="mlp_down")
    for layer in (HEAD, CHOOSING):
        pulse.layer(layer)
        pulse.idle()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    torch.set_num_threads(1)
    fd = anonymous()
    pulse, words = open_pulse(fd, 0, 0), control(fd)
    for name, tick in {
        "layer": lambda: pulse.layer(3),
        "enter": lambda: pulse.enter(9),
        "leave": pulse.leave,
        "read_pulse": lambda: read_pulse(words, 0),
    }.items():
        print(f"{name}: {min(repeat(tick, number=20_000, repeat=5)) / 20_000 * 1e9:.0f} ns")
    x, solo = torch.ones(1), Nothing()
    with_one, without = (
        min(repeat(lambda p=p, c=c: ticks(p, c, args.layers, x), number=500, repeat=9)) / 500 * 1e6
        for p, c in ((pulse, Ticking(solo, pulse)), (Silent(), solo))
    )
    print(f"all of a step of {args.layers} layers: {with_one - without:.1f} us")
    model = read_model({**CONFIG, "num_hidden_layers": args.layers})
    layout = computed(Layout(model, Mesh(tp=args.tp), Shares.of((1.0,) * args.tp), "float32", "float32"), "cpu")
    children = []
    for rank in range(1, args.tp):
        if not (child := os.fork()):
            measure(layout, rank, fd, args.steps)
            os._exit(0)
        children.append(child)
    silent, ticking = measure(layout, 0, fd, args.steps)
    for child in children:
        os.waitpid(child, 0)
    for name, took in (("silent", silent), ("with a pulse", ticking)):
        took = sorted(took)
        print(f"{name}: least {took[0] * 1e6:.0f} us, tenth {took[len(took) // 10] * 1e6:.0f}, half {median(took) * 1e6:.0f}")
    print(f"median difference of neighbours: {median(b - a for a, b in zip(silent, ticking, strict=True)) * 1e6:.1f} us")


if __name__ == "__main__":
    main()
