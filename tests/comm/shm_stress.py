"""Millions of rounds through shared memory: 2 to 7 processes, random sizes and delays, every sum and letter checked.

python -m tests.comm.shm_stress [--rounds 10000000] [--seed 0]
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time

import torch

from shardwise.comm.memory import anonymous
from shardwise.comm.protocol import Comm
from shardwise.comm.shm import shm

SHARES = {2: 0.5, 3: 0.2, 4: 0.1, 5: 0.08, 6: 0.07, 7: 0.05}
"""How many of the rounds each group size gets: the more ranks on the same cores, the longer a round takes."""
SMALL, LARGE = 2000, 300_000
RAMP = torch.arange(LARGE, dtype=torch.float32) % 64


def live(comm: Comm, calls: int, seed: int) -> None:
    """One rank's calls, the same on all ranks of the group, each after a pause of its own. AssertionError for a wrong value."""
    alike, own = random.Random(seed), random.Random(f"{seed} {comm.rank}")
    to, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for call in range(calls):
        kind, floats = alike.random(), alike.randrange(SMALL)
        if own.random() < 0.01:
            time.sleep(own.random() * 0.0005 if own.random() < 0.9 else 0.003)
        if kind < 0.97:
            _sum(comm, call, floats)
        elif kind < 0.98:
            _sum(comm, call, alike.randrange(LARGE))
        elif kind < 0.99:
            ranges = [range(rank * floats, (rank + 1) * floats) for rank in range(comm.size)]
            found = comm.all_gather(torch.full((floats,), call + comm.rank), ranges, site="gather")
            awaited = [torch.full((floats,), call + rank) for rank in range(comm.size)]
            assert torch.equal(found, torch.cat(awaited)), f"all_gather {call} on rank {comm.rank} of {comm.size}"
        else:
            comm.send(torch.full((floats,), call + comm.rank), to, site="ring")
            found = comm.recv(torch.zeros(floats, dtype=torch.int64), source, site="ring")
            assert torch.equal(found, torch.full((floats,), call + source)), f"recv {call} on rank {comm.rank} of {comm.size}"


def _sum(comm: Comm, call: int, floats: int) -> None:
    ramp = RAMP[:floats]
    found = comm.all_reduce(ramp + _shift(call, comm.rank), site="sum")
    awaited = ramp * comm.size + sum(_shift(call, rank) for rank in range(comm.size))
    assert torch.equal(found, awaited), f"all_reduce {call} of {floats} on rank {comm.rank} of {comm.size}"


def _shift(call: int, rank: int) -> int:
    return call * (rank + 3) % 1021


def group(size: int, calls: int, seed: int) -> bool:
    """Runs one group of processes; whether all of them were content."""
    memory = anonymous()
    command = [sys.executable, "-m", "tests.comm.shm_stress", "--rounds", str(calls), "--seed", str(seed)]
    given = ["--memory", str(memory), "--size", str(size)]
    ranks = [subprocess.Popen([*command, *given, "--rank", str(rank)], pass_fds=[memory]) for rank in range(size)]
    os.close(memory)
    codes = [rank.wait() for rank in ranks]
    return not any(codes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.rank is not None:
        comm, began = shm(args.memory, args.rank, args.size), time.monotonic()
        live(comm, args.rounds, args.seed)
        if args.rank == 0:
            each_us = (time.monotonic() - began) / args.rounds * 1e6
            print(f"{args.size} ranks: {args.rounds} calls, {each_us:.0f} us each", flush=True)
        return
    for size, share in SHARES.items():
        if not group(size, int(args.rounds * share), args.seed):
            sys.exit(f"a group of {size} ranks failed")
    print("all right")


if __name__ == "__main__":
    main()
