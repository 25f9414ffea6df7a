"""`shardwise serve`: a model behind an HTTP API, on this machine's devices, until it is told to end."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from shardwise import env
from shardwise.cli import flags, layers
from shardwise.errors import UserError
from shardwise.server.options import OPTIONS, SERVING, Option, default, limits, settings
from shardwise.telemetry import log

EXAMPLES = """\
Serves a model: OpenAI's API and others at http://127.0.0.1:8000, docs at /docs.

  shardwise serve                                      the model that comes with shardwise
  shardwise serve MODEL -tp 2 --served-model-name a    cut over two ranks, under the name "a"
  shardwise serve MODEL --host 0.0.0.0 --api-key KEY   for others, who need the key

Every option may also be a key of a TOML file (--config FILE: max_queue = 100) or a variable (SHARDWISE_MAX_QUEUE=100);
flags go before variables, and these before the file. SIGTERM or Ctrl-C lets requests finish, a second one does not.
"""


def run(argv: Sequence[str]) -> int:
    """The command; `argv` is what follows its name."""
    args = layers.read(parser(), argv)
    log.begin(args.log_format, verbose=args.stats)
    for line in layers.misspelt(parser()):
        sys.stderr.write(log.line(line, logging.WARNING, "shardwise: "))
    if env.torchrun() is not None:
        raise UserError("`serve` starts its ranks itself; call it without torchrun")
    given = {option.name: getattr(args, option.name) for option in OPTIONS}
    from shardwise.cli.bars import bars
    from shardwise.engine.intensity import Intensity
    from shardwise.engine.supervise import Policy
    from shardwise.server.serve import Wanted, serve

    wanted = Wanted(
        fronts=args.workers,
        queue=args.max_queue,
        policy=Policy(args.on_rank_loss, args.recovery_budget[0], args.recovery_budget[1], args.warm_spares),
        intensity=Intensity(args.recovery_budget[0] if args.on_engine_loss == "resume" else 0, args.recovery_budget[1]),
        anybody=args.insecure_no_key,
        verbose=args.stats,
        bars=bars if sys.stderr.isatty() and not log.in_json() else None,
    )
    return serve(flags.options(args), settings(given), wanted)


def parser() -> flags.Parser:
    """All that `serve` takes."""
    found = flags.Parser("serve", EXAMPLES)
    found.add_argument("--config", type=Path, metavar="FILE", help="a TOML file of options, named as the flags are")
    _add(found, "the server", SERVING)
    flags.add_model(found)
    flags.add_running(found, "log each request, and fields that are not known, on standard error")
    _add(found, "limits of the server", limits())
    return found


def _add(parser: flags.Parser, title: str, options: Iterable[Option]) -> None:
    group = parser.add_argument_group(title)
    for option in options:
        if option.read is None:
            group.add_argument(*option.flags, dest=option.name, help=option.help, action="store_true")
        else:
            group.add_argument(*option.flags, dest=option.name, help=option.help, type=option.read, default=default(option),
                               metavar=option.metavar, action="extend" if option.many else "store")  # fmt: skip


def markdown() -> str:
    """docs/options.md: every option."""
    return TITLE + "\n".join(layers.markdown(parser())) + "\n"


TITLE = """\
# Options of `shardwise serve`

Made by `python -c "from shardwise.cli.serve import markdown; print(markdown(), end='')"`. Flags go before variables, variables
before the file that `--config` names. Lists are written with commas; in the file they may be TOML lists. An empty variable is
as none.

"""
