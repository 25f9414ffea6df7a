"""From `shardwise serve` to the first token of a streamed answer, and what all its processes then hold.

    python bench/start.py [--reference FOLDER] [--tp 1,2] [--quantization none,int8] [--runs 5] [--idle S] [--json FILE]

Each start is a new process; files are in the page cache after the first. Run it alone on the machine. `--reference` starts the
Llama of 1.04 B parameters instead of the bundled model: written to FOLDER with random weights, and found there again. `--idle`
also tells what processor time each process takes in so many seconds in which nothing is asked.
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


Found = dict[str, dict[str, float]]
"""By unit and name."""


def one(model: str, tp: int, kind: str, idle_s: float) -> Found:
    """Seconds until it said it was ready, by what they went to, and until the first token; MiB by process; its processor time
    while nothing is asked, in percent."""
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
        own = psutil.Process(process.pid)
        held = pss(own)
        busy = idle(own, idle_s) if idle_s else {}
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    options = Options(model, tp=tp, device="cpu")
    layout = resolve(options if kind == "none" else quantized(options, kind)).layout
    weights = sum(layout.arena_bytes(rank) for rank in range(tp)) / 2**20
    # Of the cache only what a few tokens have touched is there yet: it counts as a process's own.
    held |= {"weights": weights, "a process besides": (held["all"] - weights) / (2 + tp)}
    return {"seconds": times, "pss_mib": held} | ({"idle_percent": busy} if busy else {})


def kind_of(process: psutil.Process) -> str:
    """Which of the processes below a server's front it is."""
    return "engine" if "shardwise.engine.host" in process.cmdline() else "ranks"


def pss(front: psutil.Process) -> dict[str, float]:
    """MiB of each kind of process, pages that several share divided among them; and of all."""
    held = {"front": front.memory_full_info().pss / 2**20}
    for child in front.children(recursive=True):
        name = kind_of(child)
        held[name] = held.get(name, 0.0) + child.memory_full_info().pss / 2**20
    return {**held, "all": sum(held.values())}


def idle(front: psutil.Process, seconds: float) -> dict[str, float]:
    """Percent of a processor that the front, the engine and the busiest rank take; what a start left to do is over first."""
    everybody = {"front": [front]}
    for child in front.children(recursive=True):
        everybody.setdefault(kind_of(child), []).append(child)
    time.sleep(1)
    before = {each: sum(each.cpu_times()[:2]) for some in everybody.values() for each in some}
    time.sleep(seconds)
    spent = {each: 100 * (sum(each.cpu_times()[:2]) - was) / seconds for each, was in before.items()}
    return {"a rank" if name == "ranks" else name: max(spent[each] for each in some) for name, some in everybody.items()}


def told(values: list[float], digits: int) -> dict[str, float]:
    found = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--tp", default="1,2")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--idle", type=float, default=0.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = BUNDLED if args.reference is None else str(reference(args.reference))
    command = " ".join(["python", "bench/start.py", *sys.argv[1:]])
    result: dict[str, object] = {"command": command, "commit": commit(), "machine": machine()}
    for tp, kind in [(int(tp), kind) for tp in args.tp.split(",") for kind in args.quantization.split(",")]:
        runs = [one(model, tp, kind, args.idle) for _ in range(args.runs)]
        found = {unit: {name: told([run[unit][name] for run in runs], 2) for name in runs[0][unit]} for unit in runs[0]}
        case = f"tp {tp}" + ("" if kind == "none" else f", {kind}")
        result[case] = found
        for unit, values in found.items():
            for name, value in values.items():
                print(f"{case}  {unit:12} {name:18} {value}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
