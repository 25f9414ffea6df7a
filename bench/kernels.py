"""How fast products are by themselves: GB/s of weights for few rows, GOP/s for many, each with its error.

    python bench/kernels.py [--threads 1,2] [--rows 1,4,16,32,512] [--paths avx512_vnni,amx] [--rounds 7] [--json FILE]

All that is compared is timed in turn, round by round, and the best time of each is taken. Weights change from call to call,
so that they come from memory. The error is that of the result against the product in float64, of normal random numbers.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from shardwise import native
from shardwise.bench.about import commit, machine
from shardwise.nn.kernels import packing
from shardwise.nn.kernels.pool import Pool
from shardwise.nn.kernels.quantised import NativeQuantised

SHAPES = ((2048, 8192), (8192, 2048))
FORMATS = (("int8", 64), ("int8", 128), ("int4", 32), ("int4", 128))
COPIES = 6
"""Weights of one shape that are used in turn: more than a cache of some ten MiB holds."""

Product = Callable[[torch.Tensor, int], torch.Tensor]


@dataclass(frozen=True)
class Way:
    """One way to multiply: `of` takes activations and the number of a weight; `weight_bytes` is what one weight takes."""

    name: str
    weight_bytes: int
    of: Product


@dataclass(frozen=True)
class Figure:
    way: str
    outputs: int
    inputs: int
    rows: int
    threads: int
    best_us: float
    weights_gb_s: float
    gop_s: float
    relative_error: float


def compiled(path: str, kind: str, group: int, weights: list[torch.Tensor], pool: Pool) -> Way:
    """The library's product on one path."""
    packed = [packing.empty(kind, *weight.shape, group) for weight in weights]
    for weight, into in zip(weights, packed, strict=True):
        packing.pack_into(weight, into, 0, pool)
    use, kernel = native.function("sw_use", native.NUMBER, result=native.NUMBER), NativeQuantised(pool)

    def product(x: torch.Tensor, number: int) -> torch.Tensor:
        use(native.PATHS.index(path))
        return kernel.linear(x, packed[number], None)

    size = packed[0].weight.nbytes + packed[0].scale.nbytes
    return Way(f"{kind} g{group} {path}", size, product)


def torch_float(weights: list[torch.Tensor]) -> Way:
    return Way("torch float32", weights[0].nbytes, lambda x, number: torch.nn.functional.linear(x, weights[number]))


def torch_int(weights: list[torch.Tensor]) -> Way:
    """torch._int_mm: a scale a row of each side, so it has less to do, and rounds more."""
    scales = [weight.abs().amax(1) / 127.0 for weight in weights]
    whole = [(weight / scale[:, None]).round().to(torch.int8).t() for weight, scale in zip(weights, scales, strict=True)]

    def product(x: torch.Tensor, number: int) -> torch.Tensor:
        scale = x.abs().amax(1, keepdim=True) / 127.0
        return torch._int_mm((x / scale).round().to(torch.int8), whole[number]).float() * (scale * scales[number])

    return Way("torch._int_mm", whole[0].nbytes, product)


def measure(ways: list[Way], weights: list[torch.Tensor], rows: int, threads: int, rounds: int) -> list[Figure]:
    """Each way's figure for so many rows."""
    outputs, inputs = weights[0].shape
    x = torch.randn(rows, inputs)
    true = x.double() @ weights[0].double().T
    errors = [((way.of(x, 0).double() - true).norm() / true.norm()).item() for way in ways]
    best = [float("inf")] * len(ways)
    for turn in range(rounds):
        for place, way in enumerate(ways):
            began = time.perf_counter()
            way.of(x, (turn + place + 1) % len(weights))
            best[place] = min(best[place], time.perf_counter() - began)
    return [
        Figure(
            way.name,
            outputs,
            inputs,
            rows,
            threads,
            round(seconds * 1e6, 1),
            round(way.weight_bytes / seconds / 1e9, 2),
            round(2 * rows * outputs * inputs / seconds / 1e9, 1),
            float(f"{error:.3g}"),
        )
        for way, seconds, error in zip(ways, best, errors, strict=True)
    ]


def every(paths: list[str], threads: list[int], rows: list[int], rounds: int) -> list[Figure]:
    figures = []
    for outputs, inputs in SHAPES:
        weights = [torch.randn(outputs, inputs) * 0.02 for _ in range(COPIES)]
        for count in threads:
            torch.set_num_threads(count)
            pool = Pool(count)
            ways = [compiled(path, kind, group, weights, pool) for kind, group in FORMATS for path in paths]
            ways += [torch_float(weights), torch_int(weights)]
            for m in rows:
                # torch._int_mm takes more than 16 rows.
                asked = [way for way in ways if m > 16 or way.name != "torch._int_mm"]
                found = measure(asked, weights, m, count, rounds)
                figures += found
                for one in found:
                    print(line(one), flush=True)
    return figures


def line(one: Figure) -> str:
    return (
        f"{one.outputs} x {one.inputs}, {one.rows:4d} rows, {one.threads} threads, {one.way:24s} {one.best_us:10.1f} us "
        f"{one.weights_gb_s:7.2f} GB/s {one.gop_s:8.1f} GOP/s, error {one.relative_error:.2g}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = {"type": lambda text: [int(part) for part in text.split(",")]}
    parser.add_argument("--threads", default=[1, 2], **numbers)
    parser.add_argument("--rows", default=[1, 4, 16, 32, 512], **numbers)
    parser.add_argument("--paths", default=None, help="some of " + ", ".join(native.PATHS) + "; all of this CPU but scalar")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    best = native.path()
    assert best is not None, "there are no compiled kernels to measure"
    paths = given.paths.split(",") if given.paths else list(native.PATHS[1 : native.PATHS.index(best) + 1])
    torch.manual_seed(0)
    about = {"commit": commit(), "machine": machine()}
    figures = every(paths, given.threads, given.rows, given.rounds)
    if given.json:
        given.json.write_text(json.dumps({**about, "results": [asdict(one) for one in figures]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
