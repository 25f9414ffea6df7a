"""`shardwise chaos`: faults against a server that it starts, and what its clients saw of them. A table, JSON, an exit code."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardwise import env
from shardwise.chaos.plan import CALM, DEFAULT, FAULTS, PHASES, Plan, plan, replayed
from shardwise.chaos.plan import described as planned
from shardwise.cli import flags
from shardwise.cli.watched import Watched
from shardwise.errors import UserError

if TYPE_CHECKING:
    from shardwise.chaos.rows import Row
    from shardwise.chaos.server import Command

TRIALS, CLIENTS, TOKENS, PATIENCE_S, START_S = 20, 16, 160, 30.0, 300.0

BUDGET = ("--recovery-budget", "1000/60s")
"""Of the server under test, unless it is given: more faults come here than a server should bear with."""


def run(argv: Sequence[str]) -> int:
    """The command; `argv` is what follows its name. 0 where nothing is wrong, 1 where anything is."""
    parser = _parser()
    if {"-h", "--help"}.intersection(argv):
        flags.add_model(parser)  # to be shown: they are the server's to read, as all others of `shardwise serve`
    args, rest = parser.parse_known_args(argv)
    found, command = _plan(args), _command(args, rest)
    from shardwise.bench.about import commit, machine
    from shardwise.chaos.campaign import Campaign

    about = {"command": ["shardwise", "chaos", *argv], "server": list(command.words), "commit": commit(), "machine": machine()}
    watched = Watched()
    with watched(2 * found.clients + len(found.trials)) as say:
        campaign = Campaign(found, command, args.patience, say)
        rows = campaign.run()
    if args.json is not None:
        _keep(args.json, about, found, rows)
    _show(rows, found, campaign.loose)
    return int(any(row.bad for row in rows))


def _parser() -> flags.Parser:
    parser = flags.Parser("chaos", _explained(), taken="MODEL and flags of `shardwise serve`")
    parser.add_argument("--faults", type=_names, default=DEFAULT, metavar="A,B", help=f"which (default: {','.join(DEFAULT)})")
    parser.add_argument("--phases", type=_names, default=(), metavar="A,B", help="only these of each fault's (default: all)")
    parser.add_argument("--trials", type=flags.count, default=TRIALS, metavar="N", help=f"how many faults (default: {TRIALS})")
    parser.add_argument("--clients", type=flags.count, default=CLIENTS, metavar="N", help=f"streams each (default: {CLIENTS})")
    parser.add_argument(
        "--tokens", type=flags.count, default=TOKENS, metavar="N", help=f"of the longest answer (default: {TOKENS})"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="makes the plan and the requests (default: 0)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="the plan of an earlier run, as --json wrote it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the plan, a row for each trial, commit and machine")
    parser.add_argument(
        "--patience", type=float, default=PATIENCE_S, metavar="S",
        help=f"a stream without an end so long after a fault is lost (default: {PATIENCE_S:g})",
    )  # fmt: skip
    parser.add_argument("--command", metavar="LINE", help='start this server instead, as "vllm serve MODEL --port {port}"')
    parser.add_argument("--rank-processes", metavar="REGEX", help="with --command: titles of processes that are ranks")
    parser.add_argument("--start-limit", type=float, default=START_S, metavar="S", help=f"of a start (default: {START_S:g})")
    return parser


def _explained() -> str:
    faults = "\n".join(f"  {name:9}{fault.text}" for name, fault in FAULTS.items() if name != CALM)
    phases = "\n".join(f"  {name:12}{text}" for name, text in PHASES.items())
    return (
        "Starts a server, does one fault after the other to it while clients stream from it, and compares each stream with\n"
        "what the same request was answered before. MODEL, its flags and all others of `shardwise serve` are the server's.\n\n"
        f"  shardwise chaos -tp 4 --faults kill,stop --trials 20\n\nfaults:\n{faults}\n\nwhen:\n{phases}"
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _plan(args: argparse.Namespace) -> Plan:
    if args.replay is None:
        return plan(args.seed, args.trials, args.faults, args.clients, args.tokens, args.phases)
    try:
        return replayed(args.replay.read_text(encoding="utf-8"), str(args.replay))
    except OSError as error:
        raise UserError(f"--replay {args.replay}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"--replay {args.replay} is no text; give what --json wrote") from None


def _command(args: argparse.Namespace, rest: Sequence[str]) -> Command:
    """The server under test: ours with the flags that are left, or another."""
    from shardwise.chaos.server import PORT, Command

    if args.command is None:
        if args.rank_processes is not None:
            raise UserError("--rank-processes is for --command; ours says itself which they are")
        from shardwise.cli import serve

        parser = serve.parser()
        given = parser.read(rest)  # what it refuses is refused here, before anything starts
        known = {name for action in parser.actions for name in action.option_strings}
        more = BUDGET if BUDGET[0] in known and BUDGET[0] not in " ".join(rest) else ()
        words = (sys.executable, "-m", "shardwise", "serve", *rest, *more, "--port", "0")
        key = (getattr(given, "api_keys", None) or [None])[0] or env.api_key()
        return Command(words, start_s=args.start_limit, key=key)
    if rest:
        raise UserError(f"unexpected {rest[0]!r}: all of the server's flags are in --command")
    try:
        foreign = shlex.split(args.command)
    except ValueError as error:
        raise UserError(f"--command {args.command!r}: {error}") from None
    if PORT not in args.command:
        raise UserError(f"--command {args.command!r} has no {PORT} in it, where the port goes")
    return Command(tuple(foreign), True, args.rank_processes, args.start_limit, env.api_key())


def _keep(path: Path, about: dict[str, Any], found: Plan, rows: Sequence[Row]) -> None:
    from shardwise.chaos.rows import described

    text = json.dumps({**about, "plan": planned(found), "rows": [described(row) for row in rows]}, indent=1)
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json {path}: {error.strerror}") from None


def _show(rows: Sequence[Row], found: Plan, loose: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from shardwise.chaos.rows import HEADS, notes, table

    console = Console()
    if not console.is_terminal:
        console.width = 400  # nobody's window: lines are not broken
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for number, head in enumerate(HEADS):
        shown.add_column(head, justify="right" if number > 1 else "left", no_wrap=not console.is_terminal)
    for cells in table(rows):
        shown.add_row(*map(Text, cells))
    console.print(shown)
    more = (
        [f"{loose} of {2 * found.clients} requests are answered otherwise in company: only their form counts"] if loose else []
    )
    for note in (*notes(rows, found.seed), *more):
        console.print(Text(note, "dim"), soft_wrap=True)
