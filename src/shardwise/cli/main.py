"""`shardwise COMMAND ...`: finds the command, runs it, and turns whatever goes wrong into one line and an exit code.

0 done, 1 the run failed, 2 the user can mend it, 70 a bug, 130 Ctrl-C, 141 the reader of standard output is gone.
"""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from shardwise import env
from shardwise.errors import ShardwiseError, UserError

COMMANDS = {
    "generate": "continue a prompt, or answer a question",
    "chat": "talk with a model in the terminal, here or on a server",
    "serve": "put a model behind an HTTP API: OpenAI's and others",
    "complete": "have a running server continue a prompt",
    "reshard": "cut the model of a running server over other ranks, while it serves",
    "inspect": "show how a model is cut over ranks; its config.json is enough",
    "bench": "measure the machine, the ranks, a model, and others beside it",
    "chaos": "kill and stop parts of a server, and compare what its clients get",
    "verify": "show that the cut changes nothing: several degrees, transformers, a server",
}

HELP = """\
usage: shardwise COMMAND [MODEL] [flags]

Runs large language models cut over any number of devices, evenly or not.

commands:
{commands}

  shardwise COMMAND --help   the flags of a command
  shardwise --version        the version

MODEL is a folder with config.json and *.safetensors, or org/name on the hub; without it, the small model that comes
with shardwise is used. Two ranks on this machine:

  shardwise generate -tp 2 --prompt "Once upon a time"
  shardwise serve -tp 2
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command line; exits with its code."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """The exit code of one command line. Everything that it started has ended when it returns."""
    _prepare_streams()
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code = _dispatch(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        # The rest goes nowhere, so that the flush at exit does not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return _explained(error)
    return code


def _dispatch(argv: Sequence[str]) -> int:
    """The command's own exit code, where it has one: `verify` found that something differs."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        commands = "\n".join(f"  {name:10}{text}" for name, text in COMMANDS.items())
        sys.stdout.write(HELP.format(commands=commands))
        return 0
    if argv[0] in ("-V", "--version", "version"):
        from importlib.metadata import version

        sys.stdout.write(f"shardwise {version('shardwise')}\n")
        return 0
    if argv[0] not in COMMANDS:
        raise UserError(_unknown(argv[0]))
    code: int | None = importlib.import_module(f"shardwise.cli.{argv[0]}").run(argv[1:])
    return code or 0


def _unknown(word: str) -> str:
    near = difflib.get_close_matches(word, COMMANDS, n=2, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    what = f"{word} comes before any command" if word.startswith("-") else f"there is no command {word!r}"
    return f"{what}; {hint}commands are {', '.join(COMMANDS)}; `shardwise --help` explains them"


def _explained(error: Exception) -> int:
    """Says in one line on standard error what went wrong; the exit code for it."""
    import logging

    from shardwise.telemetry import log

    if env.debug():
        log.trace(error)
    text, code = " ".join(str(error).split()), 2 if isinstance(error, UserError) else 1
    if not isinstance(error, ShardwiseError):
        text, code = f"internal error: {type(error).__name__}: {text}; set {env.DEBUG}=1 for the traceback; please report", 70
    sys.stderr.write(log.line(text, logging.ERROR, "shardwise: error: "))
    return code


def _prepare_streams() -> None:
    """A character that the terminal's encoding lacks becomes a question mark rather than an error."""
    import io

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _terminated(number: int, _frame: FrameType | None) -> None:
    # An exception rather than the sudden end: ranks and temporary folders go the usual way.
    sys.exit(128 + number)
