"""Every environment variable that shardwise itself reads. Libraries read their own (HF_HOME, HF_ENDPOINT, …)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from shardwise.errors import UserError

DEBUG = "SHARDWISE_DEBUG"
"""Set to 1: an unexpected failure shows its traceback."""


LOG_FORMAT = "SHARDWISE_LOG_FORMAT"
"""text or json: how `shardwise serve` and all its processes log."""

KERNELS = "SHARDWISE_KERNELS"
"""torch: compute with torch alone; or one of `native.PATHS`: as a CPU of that kind would. By default the best there is."""

COLLECTIVES = "SHARDWISE_COLLECTIVES"
"""How CPU ranks talk. shm: through shared memory, the default where kernels are compiled; gloo: over TCP."""

PREFIX = "SHARDWISE_"
"""Every option of `shardwise serve` may be set as a variable: this, and its long flag in capitals, as SHARDWISE_MAX_QUEUE."""

API_KEY = "SHARDWISE_API_KEY"
"""The key of the server that `verify --against URL`, `chat --url` and `complete --url` ask, and that `serve` asks for."""


def api_key(environ: Mapping[str, str] = os.environ) -> str | None:
    """The key for a server, or None. The variable may hold the list that `shardwise serve` takes: the first of it."""
    return environ.get(API_KEY, "").split(",")[0].strip() or None


def debug(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether tracebacks of unexpected failures are wanted."""
    return environ.get(DEBUG, "") not in ("", "0")


def log_format(environ: Mapping[str, str] = os.environ) -> str:
    """How a process that was started by another one is to log: as that one."""
    return environ.get(LOG_FORMAT, "text")


def kernels(environ: Mapping[str, str] = os.environ) -> str | None:
    """Which kernels are asked for; None where that is left to us."""
    return environ.get(KERNELS) or None


def collectives(environ: Mapping[str, str] = os.environ) -> str | None:
    """How CPU ranks are to talk, shm or gloo; None where that is left to us."""
    asked = environ.get(COLLECTIVES) or None
    if asked not in (None, "shm", "gloo"):
        raise UserError(f"{COLLECTIVES}={asked}: it is shm or gloo")
    return asked


def visible_gpus(environ: Mapping[str, str] = os.environ) -> str | None:
    """The GPUs that CUDA may show, as the user restricted them; None where they are not restricted."""
    return environ.get("CUDA_VISIBLE_DEVICES")


SPINS = "10000"
"""How often a thread of a rank looks for work before it sleeps: docs/log.md, "Threads that spin"."""


QUIET = "9"
"""Of KINETO_LOG_LEVEL, the profiler's own log: errors alone."""


def of_a_rank(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a rank process: this one, with threads that do not spin for long, and a profiler that writes no lines
    of its own, unless the user says otherwise."""
    waits = {} if "OMP_WAIT_POLICY" in environ else {"GOMP_SPINCOUNT": SPINS}
    return {**waits, "KINETO_LOG_LEVEL": QUIET, **environ}


@dataclass(frozen=True, slots=True)
class Torchrun:
    """What torchrun tells each process that it starts."""

    rank: int
    size: int
    local_size: int
    host: str
    port: int
    restart: int


def torchrun(environ: Mapping[str, str] = os.environ) -> Torchrun | None:
    """The place torchrun gave this process, or None if it was not started by torchrun."""
    numbers = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
    if not all(name in environ for name in (*numbers, "MASTER_ADDR", "TORCHELASTIC_RUN_ID")):
        return None
    try:
        rank, size, local_size, port, restart = (int(environ[name]) for name in numbers)
    except ValueError as error:
        raise UserError(f"torchrun's variables {', '.join(numbers)} must be whole numbers: {error}") from None
    return Torchrun(rank, size, local_size, environ["MASTER_ADDR"], port, restart)
