"""From `shardwise serve` to the first token of a streamed answer, and what all its processes then hold.

    python bench/start.py [--reference FOLDER] [--tp 1,2] [--quantization none,int8] [--runs 5] [--json FILE]

Each start is a new process; files are in the page cache after the first. Run it alone on the machine. `--reference` starts the
Llama of 1.04 B parameters instead of the bundled model: written to FOLDER with random weights, and found there again.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from shardwise.bench.about import commit, machine
from shardwise.bench.cases import quantized, reference_model
from shardwise.bench.export import checkpoint
from shardwise.engine.hub import BUNDLED, bundled
from shardwise.engine.setup import Options, resolve

PARTS = ("import", "weights", "ranks", "warm-up")
BODY = json.dumps({"prompt": "Once upon a time", "max_tokens": 8, "stream": True, "ignore_eos": True})
TEXT = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def reference(folder: Path) -> Path:
    """The reference model as a checkpoint, with the bundled model's text side: its ids are few enough for any vocabulary."""
    with reference_model() as config:
        checkpoint(config / "config.json", folder)
    for name in TEXT:
        shutil.copyfile(bundled() / name, folder / name)
    return folder


def first_token(url: str) -> None:
    """Returns once the first token of an answer is here."""
    parts = urlsplit(url)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(BODY)}\r\n\r\n"
    with socket.create_connection((parts.hostname or "", parts.port or 0)) as connection:
        connection.sendall((head + BODY).encode())
        seen = b""
        while b"data: " not in seen:
            part = connection.recv(65536)
            assert part, seen
            seen += part


def one(model: str, tp: int, kind: str) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds until it said it was ready, by what they went to, and until the first token; MiB by process."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "shardwise", "serve", model, "--device", "cpu", "--port", "0", "-tp", str(tp)]
    command += [] if kind == "none" else ["--quantization", kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        lines = [next(process.stdout) for _ in range(4)]
        ready_s = time.perf_counter() - begun
        first_token(re.search(r"http://\S+(?=/v1 )", lines[2])[0])  # type: ignore[index]
        times = {"ready": ready_s, "first token": time.perf_counter() - begun}
        times |= {part: float(re.search(rf"{part} ([\d.]+)", lines[1])[1]) for part in PARTS}  # type: ignore[index]
        held = pss(psutil.Process(process.pid))
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    options = Options(model, tp=tp, device="cpu")
    layout = resolve(options if kind == "none" else quantized(options, kind)).layout
    weights = sum(layout.arena_bytes(rank) for rank in range(tp)) / 2**20
    # Of the cache only what a few tokens have touched is there yet: it counts as a process's own.
    return times, {**held, "weights": weights, "a process besides": (held["all"] - weights) / (2 + tp)}


def pss(front: psutil.Process) -> dict[str, float]:
    """MiB of each kind of process, pages that several share divided among them; and of all."""
    held = {"front": front.memory_full_info().pss / 2**20}
    for child in front.children(recursive=True):
        name = "engine" if "shardwise.engine.host" in child.cmdline() else "ranks"
        held[name] = held.get(name, 0.0) + child.memory_full_info().pss / 2**20
    return {**held, "all": sum(held.values())}


def told(values: list[float], digits: int) -> dict[str, float]:
    found = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--tp", default="1,2")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = BUNDLED if args.reference is None else str(reference(args.reference))
    command = " ".join(["python", "bench/start.py", *sys.argv[1:]])
    result: dict[str, object] = {"command": command, "commit": commit(), "machine": machine()}
    for tp, kind in [(int(tp), kind) for tp in args.tp.split(",") for kind in args.quantization.split(",")]:
        runs = [one(model, tp, kind) for _ in range(args.runs)]
        found = {
            "seconds": {name: told([times[name] for times, _ in runs], 2) for name in runs[0][0]},
            "pss_mib": {name: told([held[name] for _, held in runs], 1) for name in runs[0][1]},
        }
        case = f"tp {tp}" + ("" if kind == "none" else f", {kind}")
        result[case] = found
        for unit, values in found.items():
            for name, value in values.items():
                print(f"{case}  {unit:8} {name:18} {value}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
