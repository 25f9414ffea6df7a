"""Two real ranks that compute, and of which one stands still when told to: `python -m tests.engine.standing_ranks SHARED`.

One process imports torch; for each line it reads, "EPOCH WORK FAULT SEAT", it forks two ranks and writes their process numbers.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable

import torch

from shardwise.comm.shm import shm
from shardwise.comm.ticking import Ticking
from shardwise.nn.batch import Rank
from shardwise.nn.state import State
from shardwise.runtime.limits import Limits
from shardwise.runtime.opening import kernels_of
from shardwise.runtime.pulse import open_pulse
from shardwise.runtime.runner import Runner
from shardwise.runtime.weights import Weights, origin_of
from shardwise.sched.step import Step
from tests.checkpoints import FAMILIES
from tests.group import Request, even, greedy, layout_of

SIZE, CONTEXT = 2, 512
STEP, LAYER = 60, 1
"""Where a rank stands that is to stand by itself."""
_PR_SET_PDEATHSIG = 1
_SYS_EXIT = {"x86_64": 60, "aarch64": 93}[platform.machine()]


def _spin() -> None:
    while True:
        pass


def _deadlock() -> None:
    lock = threading.Lock()
    with lock:
        lock.acquire()


def _end() -> None:
    threading.Thread(target=time.sleep, args=(600,)).start()
    ctypes.CDLL(None).syscall(_SYS_EXIT, 0)  # of this thread alone


FAULTS: dict[str, Callable[[], None]] = {
    "spin": _spin,
    "sleep": lambda: time.sleep(600),
    "deadlock": _deadlock,
    "end": _end,
}


class Faulty:
    """A layer that stands still in step STEP."""

    def __init__(self, layer: Callable[[torch.Tensor, State], torch.Tensor], fault: Callable[[], None]) -> None:
        self.layer, self.fault, self.steps = layer, fault, 0

    def __call__(self, x: torch.Tensor, state: State) -> torch.Tensor:
        self.steps += 1
        if self.steps == STEP:
            self.fault()
        return self.layer(x, state)


def live(seat: int, shared: int, epoch: int, work: str, fault: str | None) -> None:
    """One rank: joins, loads, then "decode"s for ever, makes "prefill"s of long prompts for ever, or is "idle" after one."""
    layout, device = layout_of({**FAMILIES["llama"], "max_position_embeddings": CONTEXT}, even(SIZE)), torch.device("cpu")
    pulse = open_pulse(shared, seat, epoch)
    comm = Ticking(shm(shared, seat, SIZE, epoch=epoch, crowded=True), pulse)
    pulse.loading()
    own = layout.kv_pages(CONTEXT, CONTEXT)
    rank = Rank(layout, seat, comm, device, torch.float32, torch.float32, kernels_of(layout, device, 1), pulse)
    weights = Weights(layout, seat, device, origin_of(layout, None), lambda _: None)
    runner = Runner(rank, weights, [1 + count for count in own], Limits(CONTEXT, 2, own))
    if fault:
        runner.decoder.layers[LAYER] = Faulty(runner.decoder.layers[LAYER], FAULTS[fault])
    pulse.idle()
    prompt, number = list(range(1, 100)) * 5 if work == "prefill" else [1, 2, 3], 0
    while True:
        request = Request(layout, 0, tuple(tuple(range(1, 1 + count)) for count in own), tokens=[*prompt])
        while len(request.tokens) < (len(prompt) + 1 if work != "decode" else CONTEXT):
            number += 1
            runner.forward(Step(number, (request.take(drawn=True),)))
            runner.sample(number, (greedy(),))
            request.tokens.append(7)
        while work == "idle":
            time.sleep(600)


def main() -> None:
    """Ends when nothing more is asked of it, and its ranks with it."""
    shared = int(sys.argv[1])
    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        epoch, work, fault, at = line.split()
        pids = []
        for seat in range(SIZE):
            if pid := os.fork():
                pids.append(pid)
                continue
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            live(seat, shared, int(epoch), work, fault if fault in FAULTS and seat == int(at) else None)
        print(*pids, flush=True)


if __name__ == "__main__":
    main()
