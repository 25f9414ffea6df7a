"""From `shardwise serve` to the first token of a streamed answer, and what all its processes then hold.

    python bench/start.py [--tp 1,2] [--runs 5] [--json FILE]

Each start is a new process; files are in the page cache after the first. Run it alone on the machine.
"""

from __future__ import annotations

import argparse
import json
import re
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

PARTS = ("import", "weights", "ranks", "warm-up")
BODY = json.dumps({"prompt": "Once upon a time", "max_tokens": 8, "stream": True})


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


def one(tp: int) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds until it said it was ready, by what they went to, and until the first token; MiB by process."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "shardwise", "serve", "--device", "cpu", "--port", "0", "-tp", str(tp)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        lines = [next(process.stdout) for _ in range(4)]
        ready_s = time.perf_counter() - begun
        first_token(re.search(r"http://\S+(?=/v1 )", lines[2])[0])  # type: ignore[index]
        times = {"ready": ready_s, "first token": time.perf_counter() - begun}
        times |= {part: float(re.search(rf"{part} ([\d.]+)", lines[1])[1]) for part in PARTS}  # type: ignore[index]
        own = psutil.Process(process.pid)
        held = {"front": own.memory_full_info().pss / 2**20}
        for child in own.children(recursive=True):
            name = "engine" if "shardwise.engine.host" in child.cmdline() else "ranks"
            held[name] = held.get(name, 0.0) + child.memory_full_info().pss / 2**20
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    return times, {**held, "all": sum(held.values())}


def told(values: list[float], digits: int) -> dict[str, float]:
    found = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tp", default="1,2")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result: dict[str, object] = {"command": "python bench/start.py", "commit": commit(), "machine": machine()}
    for tp in map(int, args.tp.split(",")):
        runs = [one(tp) for _ in range(args.runs)]
        found = {
            "seconds": {name: told([times[name] for times, _ in runs], 2) for name in runs[0][0]},
            "pss_mib": {name: told([held[name] for _, held in runs], 1) for name in runs[0][1]},
        }
        result[f"tp {tp}"] = found
        for kind, values in found.items():
            for name, value in values.items():
                print(f"tp {tp}  {kind:8} {name:12} {value}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
