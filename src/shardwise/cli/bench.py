"""`shardwise bench WHAT`: measures this machine, its ranks, or a model, and says what it found: a table, JSON, files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shardwise.cli import bench_flags
from shardwise.cli.watched import Watched
from shardwise.errors import UserError

if TYPE_CHECKING:
    from shardwise.bench.report import Report

Measure = Callable[[argparse.Namespace, Watched], "Report"]

WHAT: dict[str, tuple[str, Measure]] = {}
"""What can be measured: a line about it, and what does it."""


def run(argv: Sequence[str]) -> None:
    """The command; `argv` is what follows its name."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        lines = "\n".join(f"  {name:12}{text}" for name, (text, _) in WHAT.items())
        sys.stdout.write(f"usage: shardwise bench WHAT [flags]\n\nMeasures. WHAT is one of\n\n{lines}\n\n")
        sys.stdout.write("  shardwise bench WHAT --help   its flags\n")
        return
    if argv[0] not in WHAT:
        raise UserError(
            f"bench {argv[0]!r} is not known; it measures {', '.join(WHAT)}; `shardwise bench --help` explains them"
        )
    text, measure = WHAT[argv[0]]
    args = bench_flags.parser(argv[0], text).read(argv[1:])
    plot = getattr(args, "plot", None)
    if plot is not None and plot.suffix != ".png":
        raise UserError(f"--plot {plot}: it is drawn as PNG; give a name that ends in .png")
    report = replace(measure(args, Watched()), name=args.name)
    _show(report, args.json)
    _keep(report, args.out, plot, ("shardwise", "bench", *argv))


def _show(report: Report, as_json: bool) -> None:
    from shardwise.bench.report import cells, line

    if as_json:
        sys.stdout.write(line(report))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console.width = 400  # nobody's window: lines are not broken
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for number, column in enumerate(report.columns):
        table.add_column(column.head, justify="right" if number else "left", no_wrap=not console.is_terminal)
    for row in cells(report):
        table.add_row(*map(Text, row))
    console.print(Text(report.title))
    console.print(table)
    for note in report.notes:
        console.print(Text(note, "dim"), soft_wrap=True)


def _keep(report: Report, folder: Path | None, plot: Path | None, command: Sequence[str]) -> None:
    from shardwise.bench.report import put, write

    if folder is not None:
        for path in write(report, folder, command):
            sys.stderr.write(f"wrote {path}\n")
    if plot is not None and report.chart is not None:
        from shardwise.bench.chart import png

        put(plot, png(report.chart), "--plot")
        sys.stderr.write(f"wrote {plot}\n")


# --- what is measured -----------------------------------------------------------------------------------------------------


def _limits(args: argparse.Namespace, watched: Watched) -> Report:
    from shardwise.bench.limits import Wanted, limits
    from shardwise.engine.devices import cpus

    threads = args.threads or tuple(range(1, cpus() + 1))
    wanted = Wanted(threads, args.size, args.types, rounds=args.rounds)
    with watched(wanted.parts) as told:
        return limits(wanted, told)


def _comm(args: argparse.Namespace, watched: Watched) -> Report:
    from shardwise.bench.comm_sweep import Wanted, available, comm_sweep
    from shardwise.engine.cores import crowded

    wanted = Wanted(args.ranks, args.sizes, args.backends or available(), args.rounds)
    watched.warn(crowded(max(args.ranks), 1))
    with watched(wanted.parts) as told:
        return comm_sweep(wanted, told)


def _decode(args: argparse.Namespace, watched: Watched) -> Report:
    from shardwise.bench.model_runs import Wanted, decode_report

    with bench_flags.model(args) as options:
        wanted = Wanted(bench_flags.cases(args, options, watched.warn), args.batches, args.contexts, args.steps, args.rounds)
        with watched(wanted.parts) as told:
            return decode_report(wanted, told)


def _prefill(args: argparse.Namespace, watched: Watched) -> Report:
    from shardwise.bench.model_runs import Wanted, prefill_report

    with bench_flags.model(args) as options:
        wanted = Wanted(bench_flags.cases(args, options, watched.warn), args.batches, args.lengths, rounds=args.rounds)
        with watched(wanted.parts) as told:
            return prefill_report(wanted, told)


def _scaling(args: argparse.Namespace, watched: Watched) -> Report:
    from shardwise.bench.scaling import Wanted, scaling
    from shardwise.engine.cores import crowded
    from shardwise.engine.devices import cpus

    degrees = args.tp or tuple(range(1, max(2, cpus()) + 1))
    with bench_flags.model(args) as options:
        options = bench_flags.only(args, options)
        wanted = Wanted(options, degrees, args.threads or 1, args.batch, args.context, args.steps, args.rounds)
        watched.warn(crowded(max(degrees), wanted.threads))
        with watched(wanted.parts) as told:
            return scaling(wanted, told)


def _throughput(args: argparse.Namespace, watched: Watched) -> Report:
    from shardwise.bench import throughput, trace
    from shardwise.bench.cases import Case

    arrivals = trace.read(args.trace, args.requests)
    if args.url is not None:
        return bench_flags.of_server(args, arrivals, watched)
    with bench_flags.model(args) as options:
        case = Case(bench_flags.only(args, options))
        with case.engine(args.max_model_len, args.max_num_seqs) as engine:
            scale = trace.Scale(args.requests, args.speed, args.length, engine.setup.context)
            asked, cut = trace.scaled(arrivals, scale)
            with watched(len(asked)) as told:
                found = throughput.replay(asked, throughput.of_engine(engine), engine.setup.layout.model.vocab, told)
    return throughput.throughput(args.trace.name, [throughput.row(case.name, asked, found)], found, cut)


def _peers(args: argparse.Namespace, watched: Watched) -> Report:
    from shardwise.bench.cases import reference_model
    from shardwise.bench.peers import Wanted, peers
    from shardwise.engine.cores import crowded
    from shardwise.engine.devices import cpus

    threads = args.threads or cpus()
    tp = args.tp or threads
    asked = Wanted(
        args.model or args.folder / "llama-1b", args.folder, args.peers, args.formats, args.batches, args.context, args.steps,
        args.prompt, args.rounds, threads, tp, args.install, dict(args.interpreters), args.patience,
    )  # fmt: skip
    watched.warn(crowded(max(threads, tp), 1))
    if args.model is None:
        from shardwise.bench.export import checkpoint

        with reference_model() as config:
            checkpoint(config / "config.json", asked.weights)
    with watched(asked.parts) as told:
        return peers(asked, told)


WHAT.update(
    limits=("what the machine can do: reading memory, copying it, products", _limits),
    comm=("how long sums over ranks take, by size and backend", _comm),
    decode=("tokens a second while answers are written, and the share of the machine's limit", _decode),
    prefill=("tokens a second while prompts are read", _prefill),
    scaling=("speed-up by degree, and what communication takes", _scaling),
    peers=("this engine beside llama.cpp, transformers and vLLM, with the same weights", _peers),
    throughput=("a trace of a real service, replayed: rates and waiting times", _throughput),
)
