"""Where a step of decode or a prompt goes: every rank's step as a drawn timeline, and the shares of each kind of work.

    python bench/timeline.py [--tp 2] [--quantization int8] [--prompt 512] [--steps 24] [--svg FILE] [--json FILE]

A 1.04 B-parameter Llama with random weights, one process a rank. Hooks on the modules cost a few microseconds each, about 250
of them a step: shares are meant, not speed, which `shardwise bench decode` measures without hooks.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COLOURS = {
    "norm, q k v": "#4477aa", "attention": "#66ccee", "o": "#88aadd", "norm, gate up": "#44aa77", "gate × up, down": "#bbcc66",
    "all-reduce": "#ee6677", "norm": "#aa8866", "embedding": "#ccbb44", "head": "#aa66aa", "all-gather": "#cc3355",
    "sample": "#777788", "inputs": "#bbbbcc", "rest": "#e3e5e8",
}  # fmt: skip
PROMPT = 64

Span = tuple[str, float, float]


class Watch:
    """A stack of what is being done: time belongs to the innermost."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._stack: list[str] = []
        self._since = 0.0

    def enter(self, kind: str) -> None:
        self._note()
        self._stack.append(kind)

    def leave(self) -> None:
        self._note()
        self._stack.pop()

    def _note(self) -> None:
        now = time.perf_counter()
        if self._stack:
            self.spans.append((self._stack[-1], self._since, now))
        self._since = now


class Timed:
    """A comm whose collectives are watched."""

    def __init__(self, inner: Any, watch: Watch) -> None:
        self._inner, self._watch = inner, watch

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        kind = {"all_reduce": "all-reduce", "all_gather": "all-gather"}.get(name)
        if kind is None:
            return found

        def watched(*args: Any, **kwargs: Any) -> Any:
            self._watch.enter(kind)
            try:
                return found(*args, **kwargs)
            finally:
                self._watch.leave()

        return watched


def parts_of(whole: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All modules within a module, each after the one that it is part of, by their names."""
    for key, value in vars(whole).items():
        for i, part in enumerate(value) if isinstance(value, list) else [("", value)]:
            if type(part).__module__.startswith("shardwise.nn.") and hasattr(part, "__dict__") and callable(part):
                path = ".".join(str(one) for one in (name, key, i) if one != "")
                yield path, part
                yield from parts_of(part, path)


def kind_of(name: str, module: Any) -> str | None:
    """What the module called `name` does, or None where only its parts count."""
    from shardwise.nn.attention import Attention
    from shardwise.nn.kernels.joint import Joint
    from shardwise.nn.norm import Norm
    from shardwise.nn.table import Head, Table

    if isinstance(module, Joint):
        kinds = {"qkv": "norm, q k v", "ways_in": "norm, gate up", "out": "gate × up, down"}
        owner, last = name.rsplit(".", 2)[-2:]
        return "o" if owner == "o" else kinds.get(last)
    return {Attention: "attention", Norm: "norm", Head: "head", Table: "embedding"}.get(type(module))


def observe(decoder: Any, watch: Watch) -> None:
    """From here on every call of a module that does something of its own is watched."""
    kinds = {id(module): kind for name, module in parts_of(decoder) if (kind := kind_of(name, module))}
    for kind in {type(module) for _, module in parts_of(decoder) if id(module) in kinds}:
        kind.__call__ = watched(kind.__call__, kinds, watch)


def watched(call: Any, kinds: dict[int, str], watch: Watch) -> Any:
    """`call` of a class, under the watch for those objects that are in `kinds`."""

    def timed(self: Any, *args: Any) -> Any:
        if id(self) not in kinds:
            return call(self, *args)
        watch.enter(kinds[id(self)])
        try:
            return call(self, *args)
        finally:
            watch.leave()

    return timed


def rank_main(rank: int, folder: Path, steps: int, shared: int, prompt: int) -> None:
    """One rank: loads, and decodes after a prompt, or reads one of `prompt` tokens again and again, under the watch; its spans
    of every step go to a file."""
    import msgspec
    import torch

    from shardwise.runtime import heap, wire
    from shardwise.runtime.opening import join, open_runner
    from shardwise.sched.step import Draw, Item, Pages, Step
    from shardwise.spec.layout import PAGE_TOKENS

    start = msgspec.structs.replace(wire.decode((folder / "start").read_bytes()), rank=rank)
    assert isinstance(start, wire.Start)
    torch.set_num_threads(start.threads)
    watch = Watch()
    runner = open_runner(start, Timed(join(start, shared), watch), lambda _: None)  # type: ignore[arg-type]
    heap.keep()
    observe(runner.decoder, watch)
    draw = Draw(1, 0.0, 0)
    found = []
    with torch.inference_mode():
        for number in range(steps + 1):
            at = 0 if number == 0 or prompt else PROMPT + number - 1
            tokens = tuple(range(100, 100 + (prompt or PROMPT))) if at == 0 else (100 + number,)
            pages = Pages(0, tuple(range(1, 1 + -(-(at + len(tokens)) // PAGE_TOKENS))))
            step = Step(number, (Item(1, tokens, at, at + len(tokens), (pages,), drawn=(1,)),))
            watch.spans = []
            watch.enter("rest")
            watch.enter("inputs")
            ids, batch = runner.inputs.batch(step)
            watch.leave()
            runner.sampler.take(step, runner.decoder(ids, batch, runner.cache), batch)
            watch.enter("sample")
            runner.sampler.sample(number, (draw,))
            watch.leave()
            watch.leave()
            found.append(watch.spans)
    (folder / f"spans.{rank}").write_text(json.dumps(found[3:]))


def measure(tp: int, steps: int, quantization: str | None, prompt: int) -> list[list[list[Span]]]:
    """Spans of every rank, step by step."""
    from shardwise.comm.memory import anonymous
    from shardwise.engine.ranks import start_message
    from shardwise.engine.setup import Options, resolve
    from shardwise.runtime import wire

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o700)
        shutil.copy(HERE / "models" / "llama-1b.json", folder / "config.json")
        options = Options(name, tp=tp, load_format="dummy", device="cpu", max_model_len=2048, quantization=quantization)
        setup, shared = resolve(options), anonymous()
        (folder / "start").write_bytes(wire.encode(start_message(setup, 0, rendezvous=name)))
        command = [
            sys.executable,
            __file__,
            "--folder",
            name,
            "--steps",
            str(steps),
            "--shared",
            str(shared),
            "--prompt",
            str(prompt),
            "--rank",
        ]
        processes = [subprocess.Popen([*command, str(rank)], pass_fds=[shared]) for rank in range(tp)]
        if any(process.wait() for process in processes):
            raise SystemExit("a rank failed")
        return [json.loads((folder / f"spans.{rank}").read_text()) for rank in range(tp)]


def shares(steps: list[list[Span]]) -> dict[str, float]:
    """Milliseconds of each kind in a step: the median over steps."""
    sums = []
    for spans in steps:
        total: dict[str, float] = defaultdict(float)
        for kind, begin, end in spans:
            total[kind] += 1000 * (end - begin)
        sums.append(total)
    return {kind: statistics.median(total.get(kind, 0.0) for total in sums) for kind in COLOURS}


def picture(ranks: list[list[list[Span]]], args: argparse.Namespace) -> str:
    """The step of median length, one row a rank, and a legend with shares."""
    lengths = [spans[-1][2] - spans[0][1] for spans in ranks[0]]
    middle = sorted(range(len(lengths)), key=lengths.__getitem__)[len(lengths) // 2]
    begin = min(steps[middle][0][1] for steps in ranks)
    end = max(steps[middle][-1][2] for steps in ranks)
    width, top = 1000.0, 60
    drawn = []
    for row, steps in enumerate(ranks):
        y = top + 46 * row
        drawn.append(f'<text x="10" y="{y + 22}">rank {row}</text>')
        for kind, a, b in steps[middle]:
            x, w = 70 + width * (a - begin) / (end - begin), width * (b - a) / (end - begin)
            drawn.append(f'<rect x="{x:.2f}" y="{y}" width="{w:.2f}" height="34" fill="{COLOURS[kind]}"/>')
    mean = shares([spans for steps in ranks for spans in steps])
    total = sum(mean.values())
    y = top + 46 * len(ranks) + 22
    for i, (kind, ms) in enumerate(sorted(mean.items(), key=lambda pair: -pair[1])):
        x, line = 70 + 250 * (i % 4), y + 22 * (i // 4)
        drawn.append(f'<rect x="{x}" y="{line - 11}" width="12" height="12" fill="{COLOURS[kind]}"/>')
        drawn.append(f'<text x="{x + 18}" y="{line}">{kind}  {ms:.1f} ms  {100 * ms / total:.0f} %</text>')
    height = y + 22 * 4
    what = f"One prompt of {args.prompt} tokens through" if args.prompt else "One decode step of"
    title = f"{what} a 1.04 B Llama in {args.quantization or 'bfloat16'} at tp {args.tp}: {1000 * (end - begin):.0f} ms"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1090 {height}" font-family="system-ui, sans-serif"'
    frame = f'{head} font-size="13" fill="#5b6470"><rect width="1090" height="{height}" fill="#fff"/>'
    return "\n".join([frame, f'<text x="10" y="32" font-size="16">{title}</text>', *drawn, "</svg>"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--quantization", choices=("int8", "int4"))
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--prompt", type=int, default=0, metavar="N", help="steps that read a prompt of N tokens, not decode")
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--shared", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank is not None:
        rank_main(args.rank, args.folder, args.steps, args.shared, args.prompt)
        return
    ranks = measure(args.tp, args.steps, args.quantization, args.prompt)
    found = shares([spans for steps in ranks for spans in steps])
    total = sum(found.values())
    for kind, ms in sorted(found.items(), key=lambda pair: -pair[1]):
        print(f"{kind:14} {ms:8.2f} ms  {100 * ms / total:5.1f} %")
    if args.svg:
        args.svg.write_text(picture(ranks, args) + "\n")
    if args.json:
        args.json.write_text(
            json.dumps(
                {"tp": args.tp, "weights": args.quantization or "bfloat16", "prompt": args.prompt, "ms": found}, indent=2
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
