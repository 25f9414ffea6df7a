"""One rank process of the gloo and shared memory tests: a line in is an order, a line out an answer. See comm_processes.py."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch
from torch.distributed import FileStore

from shardwise.comm.protocol import Comm
from shardwise.comm.shm import shm
from shardwise.comm.torch import file_store, gloo
from shardwise.errors import CommError
from tests.comm.comm_cases import Case, check


def main() -> None:
    """Plays one scenario after another, each in a group of its own, until there are no more orders."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        tell(play(json.loads(line)))


def play(orders: dict) -> dict:
    """Joins, plays, leaves; says what came of it and how long its last call or all of it took."""
    answer: dict = {}
    comm = None
    started = time.monotonic()
    try:
        comm = join(orders)
        started = time.monotonic()
        answer.update(SCENARIOS[orders["scenario"]](comm, orders) or {})
    except CommError as error:
        answer |= {"error": str(error), "rank": error.rank, "site": error.site, "culprit": error.culprit}
    except Exception as error:
        answer |= {"failed": f"{type(error).__name__}: {error}"}
    answer["seconds"] = time.monotonic() - orders.get("started", started)
    answer["cpu_s"] = time.process_time() - orders.get("cpu_s", 0.0)
    if comm is not None and "error" in answer:
        answer["again"] = again(comm)
    if comm is not None:
        comm.close()
        comm.close()
    return answer


def join(orders: dict) -> Comm:
    """This rank's end of the group; a "one file" order shares a store between epochs."""
    folder, size, epoch = Path(orders["folder"]), orders["size"], orders["epoch"]
    if orders["memory"]:
        fd = os.open(orders["memory"], os.O_RDWR)
        try:
            return shm(fd, orders["rank"], size, deadline_s=orders["deadline_s"], epoch=epoch)
        finally:
            os.close(fd)
    store = FileStore(str(folder / "one"), size) if orders["one_file"] else file_store(folder, size, epoch)
    return gloo(
        store,
        orders["rank"],
        size,
        deadline_s=orders["deadline_s"],
        epoch=epoch,
        device_host=orders["host"],
        checked=orders["checked"],
    )


def again(comm: Comm) -> tuple[str, float]:
    """What a later call on a broken group says, and how soon."""
    started = time.monotonic()
    try:
        comm.barrier(site="again")
    except CommError as error:
        return error.site, time.monotonic() - started
    return "no error", time.monotonic() - started


def tell(word: object) -> None:
    """A line that the test waits for."""
    print(json.dumps(word), flush=True)


def contract(comm: Comm, orders: dict) -> dict:
    """All cases, in order."""
    for plain in orders["cases"]:
        check(comm, Case.of(plain))
    return {"cases": len(orders["cases"])}


def absent(comm: Comm, orders: dict) -> dict | None:
    """Rank 1 stays outside of the second collective until the test lets it go."""
    comm.all_reduce(torch.ones(3), site="first")
    tell("ready")
    if comm.rank == 1:
        sys.stdin.readline()
        return None
    orders["started"], orders["cpu_s"] = time.monotonic(), time.process_time()
    comm.all_reduce(torch.ones(3), site="second")
    return None


def waiting(comm: Comm, orders: dict) -> dict | None:
    """Every rank but 1 waits in a collective that rank 1 has half done; the test then kills rank 1."""
    comm.all_reduce(torch.ones(3), site="first")
    tell("ready")
    if comm.rank == 1:
        sys.stdin.readline()
    orders["started"] = time.monotonic()
    comm.all_reduce(torch.ones(1 << 20), site="second")
    return None


def raising(comm: Comm, orders: dict) -> None:
    """Rank 1 fails outside of a collective and leaves."""
    comm.all_reduce(torch.ones(3), site="first")
    if comm.rank == 1:
        raise KeyError("rank 1 fails by itself")
    orders["started"] = time.monotonic()
    comm.all_reduce(torch.ones(3), site="second")


def differing(comm: Comm, orders: dict) -> None:
    """Rank 1 makes another call than the others."""
    comm.all_reduce(torch.ones(3), site="first")
    other = comm.rank == 1
    match orders["differing"]:
        case "shape":
            comm.all_reduce(torch.ones(4 if other else 3), site="second")
        case "dtype":
            comm.all_reduce(torch.ones(3, dtype=torch.int32 if other else torch.float32), site="second")
        case "site":
            comm.all_reduce(torch.ones(3), site="third" if other else "second")
        case "op":
            (comm.broadcast(torch.ones(3), 0, site="second") if other else comm.all_reduce(torch.ones(3), site="second"))
        case "counts":
            sends, receives = ([1, 1], [2, 1]) if other else ([1, 1], [1, 1])
            comm.all_to_all(torch.ones(2, 3), sends, receives, site="second")
        case "message":
            if other:
                comm.recv(torch.ones(4), 0, site="second")
            else:
                comm.send(torch.ones(3), 1, site="second")
                comm.barrier(site="after")


def listening(comm: Comm, orders: dict) -> dict:
    """The addresses that this process listens on, as /proc has them."""
    comm.barrier()
    planted = socket.create_server(("0.0.0.0", 0)) if orders["planted"] else None
    inodes = {link.removeprefix("socket:[").removesuffix("]") for link in open_files()}
    found = []
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and inode in inodes:
                found.append(local.split(":")[0])
    if planted is not None:
        planted.close()
    return {"listening": found}


def open_files() -> list[str]:
    """What each descriptor of this process stands for."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor of this very listing
            found.append(str(entry.readlink()))
    return found


def reforming(comm: Comm, orders: dict) -> dict:
    """The groups of the next epochs, in the same folder. Nothing of the old ones is left open."""
    before = len(open_files())
    comm.close()
    for epoch in (1, 2):
        anew = join({**orders, "epoch": epoch})
        total = anew.all_reduce(torch.ones(2), site="anew")
        anew.barrier()
        anew.close()
    return {"total": total.tolist(), "open_more": len(open_files()) - before}


SCENARIOS = {
    "contract": contract,
    "absent": absent,
    "waiting": waiting,
    "raising": raising,
    "differing": differing,
    "listening": listening,
    "reforming": reforming,
}

if __name__ == "__main__":
    main()
