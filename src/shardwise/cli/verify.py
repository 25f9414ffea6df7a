"""`shardwise verify`: the same texts at several degrees, held against each other, transformers or a server; a verdict each."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from shardwise import env
from shardwise.cli import flags
from shardwise.cli.start import followed, loaded
from shardwise.errors import UserError
from shardwise.verify.drive import Advance
from shardwise.verify.run import Plan, Reference, Verification

MAX_TOKENS = 16
DEGREES = (1, 2, 3)


def run(argv: Sequence[str]) -> int:
    """The command; `argv` is what follows its name. 0 where all is the same, 1 where something differs, 2 where a degree
    was refused."""
    args = _parser().read(argv)
    if followed():
        return 0
    report = Verification(_plan(args), loaded, _watched).run()
    if args.stats:
        sys.stderr.write("".join(f"{row.name}: {row.seconds:.1f} s\n" for row in report.rows if row.seconds))
    if args.json:
        from shardwise.cli.verdicts import described

        # ASCII: one line for every reader, whatever it takes for a line end, in every encoding.
        sys.stdout.write(json.dumps(described(report)) + "\n")
    else:
        from rich.console import Console

        from shardwise.cli.verdicts import draw

        draw(Console(), report)
    return report.code


def _parser() -> flags.Parser:
    parser = flags.Parser(
        "verify",
        "Shows that the cut changes nothing: computes the same texts at each degree and compares logits, log-likelihoods\n"
        "and greedy tokens. Exit code 0: all the same; 1: something differs; 2: something could not be asked.",
    )
    parser.add_argument(
        "--against", metavar="transformers|URL", help="compare with this instead of the first degree: URL is an OpenAI server"
    )
    parser.add_argument("--api-key", metavar="KEY", help=f"the server's key (better: the variable {env.API_KEY})")
    parser.add_argument("--served-model", metavar="NAME", help="which of the server's models (default: its only one)")
    parser.add_argument(
        "--prompts", metavar="FILE", help='a text a line, or .jsonl with "prompt" (default: a few that are built in)'
    )
    parser.add_argument(
        "--max-tokens", "-n", type=flags.count, default=MAX_TOKENS, metavar="N",
        help=f"greedy tokens after each text (default: {MAX_TOKENS})",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="everything as one line of JSON on standard output")
    flags.add_model(parser, several=True)
    flags.add_running(parser)
    return parser


def _plan(args: argparse.Namespace) -> Plan:
    """What is asked for; whatever can be refused before the model is looked up."""
    place = env.torchrun()
    degrees: tuple[int, ...] = args.tp or ((place.size,) if place else DEGREES)
    if args.shares is not None and len(args.shares) not in degrees:
        if args.tp is not None:
            raise UserError(
                f"--shares has {len(args.shares)} numbers, and no degree in -tp {','.join(map(str, degrees))} has as many ranks"
            )
        degrees = (1, len(args.shares)) if len(args.shares) > 1 else (1,)
    if args.against is None and place is None and 1 not in degrees:
        # What they are held against.
        degrees = (1, *degrees)
    for flag, given in (("--api-key", args.api_key), ("--served-model", args.served_model)):
        if given is not None and args.against in (None, "transformers"):
            raise UserError(f"{flag} is for --against URL")
    args.tp = degrees[0]
    options = replace(flags.options(args), tp=None)
    return Plan(options, degrees, args.max_tokens, args.prompts, _reference(args))


def _reference(args: argparse.Namespace) -> Reference | None:
    if args.against is None:
        return None
    if args.against == "transformers":
        from shardwise.verify.peer import Transformers

        return Transformers()
    if "://" not in args.against:
        raise UserError(f"--against {args.against!r}: give transformers, or an address such as http://127.0.0.1:8000")
    from shardwise.verify.server import open_server

    return open_server(args.against, args.api_key or env.api_key(), args.served_model)


@contextmanager
def _watched(name: str, places: int) -> Iterator[Advance]:
    """A bar on standard error while a run lasts, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(name, total=places)
        yield lambda count: bars.advance(task, count)
